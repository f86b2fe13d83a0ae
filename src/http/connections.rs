//! Connections: so many at a time, and each request has to arrive soon, so that nobody who only connects keeps others out.

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    body::{Body, to_bytes},
    extract::Request,
    http::StatusCode,
    middleware::Next,
    response::{IntoResponse, Response},
};
use hyper::server::conn::http1::Builder;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{net::TcpListener, sync::Semaphore};

use crate::shutdown::Shutdown;

/// Far more than scrapers, probes and commands need, and few beside the files that a process may open.
const CONNECTIONS: usize = 24;

/// How long the head of a request may take, from when it is waited for, and its body after that.
const ARRIVAL: Duration = Duration::from_secs(5);

/// Until the next try, when no connection could be accepted: no file may be left for it.
const PAUSE: Duration = Duration::from_millis(100);

/// Serves until the signal.
pub async fn serve(listener: TcpListener, router: Router, mut shutdown: Shutdown) {
    let mut builder = Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(ARRIVAL);
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let accepted = tokio::select! {
            biased;
            () = shutdown.wait() => return,
            accepted = accept(&listener, &room) => accepted,
        };
        let Some((stream, permit)) = accepted else {
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        let (builder, service) = (builder.clone(), TowerToHyperService::new(router.clone()));
        tokio::spawn(async move {
            // That somebody went away, or was sent away, is of no interest here.
            let _ = builder.serve_connection(TokioIo::new(stream), service).await;
            drop(permit);
        });
    }
}

/// The next connection, once there is room for it; none if it could not be had.
async fn accept(
    listener: &TcpListener,
    room: &Arc<Semaphore>,
) -> Option<(tokio::net::TcpStream, tokio::sync::OwnedSemaphorePermit)> {
    let permit = Arc::clone(room).acquire_owned().await.ok()?;
    let (stream, _) = listener.accept().await.ok()?;
    Some((stream, permit))
}

/// Takes the body of a request as a whole, if it comes soon and is not longer than `limit` bytes.
pub async fn whole_body(request: Request, next: Next, limit: usize) -> Response {
    let (head, body) = request.into_parts();
    match tokio::time::timeout(ARRIVAL, to_bytes(body, limit)).await {
        Ok(Ok(bytes)) => next.run(Request::from_parts(head, Body::from(bytes))).await,
        Ok(Err(_)) => StatusCode::PAYLOAD_TOO_LARGE.into_response(),
        Err(_) => StatusCode::REQUEST_TIMEOUT.into_response(),
    }
}
