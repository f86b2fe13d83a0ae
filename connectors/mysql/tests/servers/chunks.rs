//! Rows that are in tables already, chunk by chunk, on both flavours.

use std::time::{Duration, Instant};

use headwater_connector::{Batch, Chunk, ChunkRead, ChunkRequest, TableReader};

/// A request for all rows of a table.
pub fn whole(table: &str) -> ChunkRequest {
    let table = table.to_owned();
    let (max_rows, max_bytes) = (1_000_000, 64 << 20);
    ChunkRequest { table, after: None, until: None, filter: None, keys: None, max_rows, max_bytes, gate: None }
}

/// Reads a chunk; what waits for something gets it before long.
pub async fn chunk(reader: &mut dyn TableReader, request: &ChunkRequest, batch: &mut Batch) -> Chunk {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        match reader.read(request, batch).await.unwrap_or_else(|error| panic!("{}: {error}", request.table)) {
            ChunkRead::Rows(chunk) => return chunk,
            ChunkRead::Waiting(words) => assert!(Instant::now() < deadline, "it still waits for {words}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
