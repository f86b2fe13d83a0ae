//! HTTP on loopback: health, readiness, metrics, status.

pub mod codes;
mod connections;
pub mod metrics;

use std::net::SocketAddr;

use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, Path, Request as HttpRequest, State},
    http::{HeaderMap, StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use headwater_connector::{Error, Kind, Result};
use serde_json::json;
use tokio::net::TcpListener;

use crate::{
    pipeline::{
        Handle,
        backfill::order::Request,
        daemon::Action,
        handle::{ErrorView, State as ConnectorState},
    },
    shutdown::Shutdown,
};

/// No request needs more: the longest names the keys of rows that are to be read again.
const BODY_LIMIT: usize = 4 << 20;

/// Binds the address before anything else is touched, so that a second daemon ends here and the first is undisturbed.
pub async fn bind(listen: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(listen).await.map_err(|error| {
        Error::new(&codes::PORT_BUSY, "the HTTP address cannot be bound")
            .at("option", "http.listen")
            .at("address", listen)
            .hint("Stop the process that listens there, or set another `http.listen`.")
            .caused_by(error)
    })
}

/// Serves until the signal.
pub async fn serve(listener: TcpListener, handle: Handle, shutdown: Shutdown) {
    let router = Router::new()
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics_page))
        .route("/v1/status", get(status))
        .route("/v1/connectors/{name}/backfill", post(backfill).layer(middleware::from_fn(only_own_pages)))
        .route("/v1/connectors/{name}/{action}", post(act).layer(middleware::from_fn(only_own_pages)))
        .layer(middleware::from_fn(|request, next| connections::whole_body(request, next, BODY_LIMIT)))
        .layer(DefaultBodyLimit::max(BODY_LIMIT))
        .route_layer(middleware::from_fn(only_local))
        // Says nothing that anybody could want to know.
        .route("/healthz", get(|| async { "ok\n" }))
        .with_state(handle);
    connections::serve(listener, router, shutdown).await;
}

/// HTTP status of an error that ends a request.
pub fn status_code(kind: Kind) -> StatusCode {
    match kind {
        Kind::Config | Kind::Data => StatusCode::BAD_REQUEST,
        Kind::Environment | Kind::Retry => StatusCode::SERVICE_UNAVAILABLE,
        Kind::Lost | Kind::Fenced => StatusCode::CONFLICT,
        Kind::Bug => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// 200 once every connector streams (and perhaps still reads older rows) or is paused, else 503; the body names those that do not, so that a probe's log explains itself.
async fn ready(State(handle): State<Handle>) -> Response {
    let connectors = handle.connectors();
    let waiting: Vec<_> = connectors
        .iter()
        // A pause is what somebody wanted.
        .filter(|status| {
            !matches!(status.state(), ConnectorState::Streaming | ConnectorState::Backfilling | ConnectorState::Paused)
        })
        .map(|status| json!({ "name": status.name(), "state": status.state() }))
        .collect();
    let code = if waiting.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (code, Json(json!({ "ready": waiting.is_empty(), "waiting": waiting }))).into_response()
}

async fn status(State(handle): State<Handle>) -> Response {
    let (connectors, config) = (handle.status().await, handle.config());
    // The config is only worth a word when newer files were refused.
    Json(match config.errors.as_slice() {
        [] => json!({ "connectors": connectors }),
        _ => json!({ "connectors": connectors, "config": config }),
    })
    .into_response()
}

/// `pause`, `resume` or `restart` of one connector; the answer is how it is afterwards.
async fn act(State(handle): State<Handle>, Path((name, action)): Path<(String, String)>) -> Response {
    let Some(action) = Action::named(&action) else { return StatusCode::NOT_FOUND.into_response() };
    match handle.act(&name, action).await {
        Ok(connector) => Json(json!({ "connector": connector })).into_response(),
        Err(error) => (status_code(error.kind()), Json(json!({ "error": ErrorView::from(&error) }))).into_response(),
    }
}

/// Does something about the rows of a table; the answer is how the connector is when that is durable.
async fn backfill(State(handle): State<Handle>, Path(name): Path<String>, Json(request): Json<Request>) -> Response {
    match handle.backfill(&name, request).await {
        Ok(connector) => Json(json!({ "connector": connector })).into_response(),
        Err(error) => (status_code(error.kind()), Json(json!({ "error": ErrorView::from(&error) }))).into_response(),
    }
}

/// What changes something must come from a program, or from a page that we served ourselves: any other page in a browser on
/// this machine can send a request here too (CSRF).
async fn only_own_pages(request: HttpRequest, next: Next) -> Response {
    if is_own_page(request.headers()) { next.run(request).await } else { StatusCode::FORBIDDEN.into_response() }
}

fn is_own_page(headers: &HeaderMap) -> bool {
    let Some(host) = headers.get(header::HOST).and_then(|host| host.to_str().ok()) else { return false };
    let own = format!("http://{host}");
    headers.get(header::ORIGIN).is_none_or(|origin| origin.as_bytes() == own.as_bytes())
}

async fn metrics_page(State(handle): State<Handle>) -> Response {
    let page = metrics::page(&handle).await;
    ([(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], page).into_response()
}

/// A page of another site whose name was pointed at loopback must not read what we serve (DNS rebinding).
async fn only_local(request: HttpRequest, next: Next) -> Response {
    if is_local(request.headers()) { next.run(request).await } else { StatusCode::FORBIDDEN.into_response() }
}

/// Whether the request was made to a name of this machine.
fn is_local(headers: &HeaderMap) -> bool {
    let Some(host) = headers.get(header::HOST).and_then(|host| host.to_str().ok()) else { return true };
    let name =
        host.rsplit_once(':').filter(|(_, port)| port.bytes().all(|byte| byte.is_ascii_digit())).map_or(host, |parts| parts.0);
    let name = name.trim_start_matches('[').trim_end_matches(']');
    name == "localhost" || name.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_programs_and_own_pages_change_something() {
        let with = |host: Option<&str>, origin: Option<&str>| {
            let named = [(header::HOST, host), (header::ORIGIN, origin)];
            let present = named.into_iter().filter_map(|(name, value)| Some((name, value?.parse().unwrap())));
            is_own_page(&present.collect())
        };
        assert!(with(Some("127.0.0.1:8787"), None));
        assert!(with(Some("localhost:8787"), Some("http://localhost:8787")));
        for origin in ["http://localhost:3000", "https://localhost:8787", "null", "http://evil.example", ""] {
            assert!(!with(Some("localhost:8787"), Some(origin)), "{origin}");
        }
        assert!(!with(None, None));
    }

    #[test]
    fn only_loopback_names_are_served() {
        let with = |host: &str| HeaderMap::from_iter([(header::HOST, host.parse().unwrap())]);
        for host in ["localhost:8787", "127.0.0.1:8787", "[::1]:8787", "localhost"] {
            assert!(is_local(&with(host)), "{host}");
        }
        for host in ["evil.example:8787", "192.0.2.1", "localhost.evil.example"] {
            assert!(!is_local(&with(host)), "{host}");
        }
    }
}
