//! Reading tables in chunks.

#![allow(dead_code)]

use std::time::{Duration, Instant};

use headwater_connector::{
    Batch, Chunk, ChunkRead, ChunkRequest, Cursor, Error, Limits, Position, Row, Source, SourceConnector, TableReader, Value,
};

use super::{Postgres, begin, connector};

/// A first start on a database, and a session that reads.
pub async fn reader(server: &Postgres, database: &str) -> (Box<dyn SourceConnector>, Box<dyn TableReader>) {
    let connector = connector(&server.url(database), serde_json::json!({}));
    begin(connector.as_ref()).await;
    let reader = connector.reader().await.expect("a reader");
    (connector, reader)
}

/// Reads the stream until it has passed a barrier.
pub async fn passes(source: &mut dyn Source, barrier: &Position) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !source.passed(barrier).unwrap() {
        let limits = Limits { max_wait: Duration::from_millis(200), ..Limits::default() };
        source.next_batch(&mut Batch::default(), &limits).await.unwrap();
        assert!(Instant::now() < deadline, "the barrier {barrier} is not passed");
    }
}

/// A request for the first rows of a table.
pub fn first(table: &str, max_rows: usize) -> ChunkRequest {
    ChunkRequest {
        table: table.to_owned(),
        after: None,
        until: None,
        filter: None,
        keys: None,
        max_rows,
        max_bytes: 4 << 20,
        gate: None,
    }
}

/// A chunk that is expected to come.
pub async fn chunk(reader: &mut dyn TableReader, request: &ChunkRequest) -> (Chunk, Batch) {
    let mut batch = Batch::default();
    match reader.read(request, &mut batch).await {
        Ok(ChunkRead::Rows(chunk)) => (chunk, batch),
        Ok(ChunkRead::Waiting(what)) => panic!("it waits for {what}"),
        Err(error) => panic!("{error} {}", error.hint_text()),
    }
}

/// What a chunk waits for.
pub async fn waiting(reader: &mut dyn TableReader, request: &ChunkRequest) -> String {
    match reader.read(request, &mut Batch::default()).await {
        Ok(ChunkRead::Rows(_)) => panic!("it does not wait"),
        Ok(ChunkRead::Waiting(what)) => what,
        Err(error) => panic!("{error}"),
    }
}

/// Why a chunk is refused.
pub async fn chunk_error(reader: &mut dyn TableReader, request: &ChunkRequest) -> Error {
    match reader.read(request, &mut Batch::default()).await {
        Ok(ChunkRead::Rows(_)) => panic!("rows came"),
        Ok(ChunkRead::Waiting(what)) => panic!("it waits for {what}"),
        Err(error) => error,
    }
}

/// The rows of a batch.
pub fn rows(batch: &Batch) -> Vec<Row> {
    batch.changes().iter().map(|change| change.after.expect("a row")).collect()
}

/// A value's text.
pub fn text(value: Value<'_>) -> String {
    match value {
        Value::Text(text) | Value::Json(text) => text.to_owned(),
        other => format!("{other:?}"),
    }
}

/// The cells of the column `label` of a whole range, read in chunks of so many rows. Every chunk but the last is as long as was asked for.
pub async fn labels(
    reader: &mut dyn TableReader,
    table: &str,
    size: usize,
    range: (Option<Cursor>, Option<Cursor>),
) -> Vec<String> {
    let mut labels = Vec::new();
    let (mut after, until) = range;
    loop {
        let request = ChunkRequest { after, until: until.clone(), ..first(table, size) };
        let (chunk, batch) = tokio::time::timeout(Duration::from_secs(60), self::chunk(reader, &request)).await.expect("a chunk");
        let rows = rows(&batch);
        assert!(rows.len() <= size, "{} rows of {size}", rows.len());
        for row in &rows {
            let at = batch.schemas()[0].columns.iter().position(|column| column.name == "label").expect("a column");
            labels.push(text(batch.value(*row, at)));
        }
        match chunk.end {
            Some(_) if rows.is_empty() => panic!("a chunk that gets no further"),
            Some(end) => after = Some(end),
            None => return labels,
        }
    }
}

/// A transaction of another session, which stays open after its first statements.
pub struct Held {
    end: std::sync::mpsc::Sender<String>,
    thread: std::thread::JoinHandle<Result<(), String>>,
}

impl Held {
    /// Runs the statements and keeps the session.
    pub fn after(server: &Postgres, database: &str, statements: &str) -> Self {
        let (port, database, statements) = (server.port, database.to_owned(), statements.to_owned());
        let (end, ended) = std::sync::mpsc::channel::<String>();
        let (ready, is_ready) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            let mut client = super::sql::connect(port, &database)?;
            let mut run = |sql: &str| client.batch_execute(sql).map_err(|error| error.to_string());
            let _ = ready.send(run(&statements));
            while let Ok(more) = ended.recv() {
                run(&more)?;
            }
            Ok(())
        });
        is_ready.recv().expect("the session").expect("the statements");
        Self { end, thread }
    }

    /// Runs more without waiting for it.
    pub fn go_on(&self, statements: &str) {
        self.end.send(statements.to_owned()).expect("the session");
    }

    /// Runs the last statements and ends the session.
    pub fn end(self, statements: &str) {
        self.go_on(statements);
        drop(self.end);
        self.thread.join().expect("the session").expect("the statements");
    }
}
