//! One worker's proxy: decides what a request is, and does it.

use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::future::Future;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;

use http::request::Parts;
use http::{HeaderMap, Method, Request, Response, StatusCode, Version};
use http_body::Body;
use hyper::body::Incoming;
use tokio::time::Instant;

use super::admit::{self, Visit};
use super::body::Answer;
use super::client::Client;
use super::condition::Facts;
use super::error::{self, Refusal};
use super::host::{Authority, bracketed};
use super::local::Local;
use super::mirror::Copies;
use super::passthrough::Passage;
use super::record::{CLIENT_CLOSED, Record, RequestId};
use super::reply::{allow, bare, full, redirect, refuse};
use super::rewrite::NotNormal;
use super::route::NoRoute;
use super::snapshot::{RedirectPath, Snapshot, SnapshotReader, Target};
use super::tunnel::Tunnel;
use super::upgrade::{self, Upgrade};
use super::{after, headers, mirror, path};
use crate::clock::SharedClock;
use crate::conn::{ConnInfo, Service, TlsPolicy};
use crate::name::HostName;
use crate::policy::{Identity, Pass, client_cert};
use crate::telemetry::{AccessWriter, Metrics};
use crate::upstream::{Failure, Pools, is_grpc_call};

/// Routes and forwards the requests of one worker.
#[derive(Debug)]
pub struct Proxy {
    shared: Rc<Shared>,
    reader: SnapshotReader,
    local: RefCell<Rc<Local>>,
    next_id: Cell<u64>,
}

/// What a worker has for all its requests.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) pools: Pools,
    pub(super) metrics: Arc<Metrics>,
    pub(super) access: AccessWriter,
    pub(super) clock: SharedClock,
    pub(super) copies: Copies,
}

/// What a request is.
enum Verdict<'a> {
    Goes(Decision<'a>),
    /// `OPTIONS *`: it is about us, and no route.
    Allows,
}

/// Where a request goes.
struct Decision<'a> {
    authority: Authority<'a>,
    path: Cow<'a, str>,
    /// `None`: to https.
    route: Option<usize>,
}

impl Proxy {
    /// The proxy of one worker. `access` and `pools` are its own.
    pub fn new(
        reader: SnapshotReader,
        pools: Pools,
        metrics: Arc<Metrics>,
        access: AccessWriter,
        clock: SharedClock,
    ) -> Self {
        let local = RefCell::new(Local::new(reader.load()));
        // Ids are unique, not secret.
        let next_id = Cell::new(rand::random());
        Self {
            shared: Rc::new(Shared { pools, metrics, access, clock, copies: Copies::default() }),
            reader,
            local,
            next_id,
        }
    }

    /// The snapshot in force. When servers are gone, by a reload or because a name resolves to others, connections to them are
    /// let go.
    fn local(&self) -> Rc<Local> {
        let held = self.local.borrow().clone();
        let version = held.snapshot.upstreams.version();
        let local = match self.reader.is_current(&held.snapshot) {
            true if held.version.get() == version => return held,
            true => held,
            false => Local::new(self.reader.load()),
        };
        local.version.set(local.snapshot.upstreams.version());
        *self.local.borrow_mut() = local.clone();
        let ids: std::collections::HashSet<u64> =
            local.snapshot.upstreams.endpoints().map(|e| e.id()).collect();
        self.shared.pools.retain(|id| ids.contains(&id));
        local
    }

    fn request_id(&self) -> RequestId {
        // Odd, so that all numbers come before one comes again; spread, so that neighbours look different.
        let number = self.next_id.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.next_id.set(number);
        RequestId::new(number)
    }

    fn begin(&self, parts: &Parts, conn: &ConnInfo, local: Rc<Local>) -> (Box<Record>, Client) {
        let (trusted, header) = &local.snapshot.trusted;
        let client = Client::of(conn.peer.ip(), trusted, *header, &parts.headers);
        client.look_for_mistake(&parts.headers);
        let mut record = self.blank(client.address, conn, parts.method.clone(), local);
        record.target = parts.uri.path_and_query().cloned();
        record.version = parts.version;
        record.html = error::wants_html(&parts.headers);
        record.grpc = is_grpc_call(parts.version, &parts.method, &parts.headers);
        record.tls_resumed = conn.tls.as_ref().map(|tls| tls.resumed);
        (record, client)
    }

    /// The record of something that has just come from `client`.
    fn blank(&self, client: IpAddr, conn: &ConnInfo, method: Method, local: Rc<Local>) -> Box<Record> {
        Box::new(Record {
            shared: self.shared.clone(),
            local,
            start: Instant::now(),
            id: self.request_id(),
            client,
            ends: (conn.peer, conn.local),
            method,
            host: None,
            target: None,
            version: Version::HTTP_11,
            html: false,
            grpc: false,
            tls_resumed: None,
            route: None,
            endpoint: None,
            exchange: None,
            pass: Pass::default(),
            status: CLIENT_CLOSED.0,
            reason: CLIENT_CLOSED.1,
            received: 0,
            sent: 0,
            scheme: conn.scheme(),
            coding: None,
            encoded: None,
            copy: None,
            passed: false,
            tunnelled: false,
        })
    }

    /// Answers a request, and lets its route's policies have the last word on the answer.
    async fn serve(self: Rc<Self>, request: Request<Incoming>, conn: Rc<ConnInfo>) -> Response<Answer> {
        let (mut head, body) = self.answer(request, conn).await.into_parts();
        if let Some((record, policy)) = body.record().and_then(|record| Some((record, record.policy()?))) {
            policy.standing(&record.pass, &mut head.headers);
        }
        let body = after::finish(&mut head, body).await;
        Response::from_parts(head, body)
    }

    async fn answer(self: Rc<Self>, request: Request<Incoming>, conn: Rc<ConnInfo>) -> Response<Answer> {
        let (mut parts, body) = request.into_parts();
        let local = self.local();
        let is_stream = upgrade::is_websocket_stream(&parts);
        if is_stream {
            parts.method = Method::GET;
        }
        let (mut record, client) = self.begin(&parts, &conn, local.clone());
        let decision = match decide(&local.snapshot, &parts, &conn) {
            Ok(Verdict::Goes(decision)) => decision,
            Ok(Verdict::Allows) => {
                record.host = asked_host(&parts);
                return allow(StatusCode::NO_CONTENT, record);
            }
            Err(refusal) => {
                record.host = asked_host(&parts);
                return refuse(refusal, record);
            }
        };
        record.host = Some(decision.authority.host.as_ref().into());
        record.route = decision.route;
        let query = parts.uri.query();
        let Some(route) = decision.route else {
            let port = local.snapshot.https_port.filter(|port| *port != 443);
            let mut origin = format!("https://{}", bracketed(&decision.authority.host));
            if let Some(port) = port {
                origin.push_str(&format!(":{port}"));
            }
            return redirect(StatusCode::PERMANENT_REDIRECT, origin, &decision.path, query, record);
        };
        let policy = &local.snapshot.policies[route];
        let now = record.start.into_std();
        record.pass = match policy.admit(client.address, &parts.headers, now) {
            Ok(pass) => pass,
            Err(denial) => return refuse(Refusal::Denied(denial), record),
        };
        let mut identity = Identity::default();
        if let Some(authentication) = policy.authenticate(&parts.headers, now) {
            let visit = Visit {
                parts: &parts,
                authority: &decision.authority,
                path: &decision.path,
                conn: &conn,
                client,
            };
            // Apart and boxed: most routes do not ask, and their requests need not carry room for it.
            match Box::pin(admit::authenticate(authentication, visit, record)).await {
                Ok((found, admitted)) => (identity, record) = (found, admitted),
                Err(answer) => return *answer,
            }
        }
        // An encoder holds more than the answer that it makes smaller.
        record.coding = policy.coding(&parts.headers).filter(|_| conn.load.has_room());
        match &local.snapshot.targets[route] {
            Target::Passthrough(_) => refuse(Refusal::Misdirected, record),
            Target::Redirect { status, origin, to } => {
                let origin = origin.to_string();
                match to {
                    RedirectPath::Same => redirect(*status, origin, &decision.path, query, record),
                    RedirectPath::Fixed(path) => redirect(*status, origin, path, None, record),
                    RedirectPath::Rewritten(rewrite) => match rewrite.apply(&decision.path) {
                        Ok(Some(new)) => {
                            redirect(*status, origin, &new.path, new.query.as_deref().or(query), record)
                        }
                        Ok(None) => refuse(Refusal::NoRoute, record),
                        Err(_) => refuse(Refusal::BadRewrite, record),
                    },
                }
            }
            Target::Respond { status, body } => {
                record.answered(*status);
                match body {
                    Some((kind, body)) => full(*status, kind.clone(), body.clone(), record),
                    None if status.is_client_error() || status.is_server_error() => {
                        let (kind, page) = after::page(*status, &record);
                        full(*status, kind, page, record)
                    }
                    None => bare(*status, record),
                }
            }
            Target::Forward(target) => {
                let prefix = &local.snapshot.router.routes()[route].path;
                let path = match target.path(prefix, &decision.path) {
                    Ok(path) => path,
                    Err(NotNormal) => return refuse(Refusal::BadRewrite, record),
                };
                let Some(introduction) = client.introduce(&conn, &decision.authority, &parts.headers) else {
                    return refuse(Refusal::Host(super::host::HostError::Malformed), record);
                };
                let Some(uri) = super::forward::target(&parts.uri, &path) else {
                    return refuse(Refusal::Path(path::PathError::Control), record);
                };
                let Some(balancer) = target.split.choose(client.address, &parts.headers) else {
                    return refuse(Refusal::Upstream(Failure::NoServer), record);
                };
                let incoming = headers::Incoming {
                    client,
                    scheme: conn.scheme(),
                    introduction: &introduction,
                    version: parts.version,
                };
                let upgrade = Upgrade::asked(&parts, !body.is_end_stream(), is_stream);
                let mut fields = std::mem::take(&mut parts.headers);
                let mirror = target.mirror.as_ref().filter(|_| upgrade.is_none());
                headers::to_server(&mut fields, &incoming);
                policy.identify(&identity, &mut fields);
                if let Some(tls) = &conn.tls {
                    client_cert::tell(tls, &mut fields);
                }
                policy.prepare(&mut fields, &record.facts());
                if let Some(upgrade) = &upgrade {
                    upgrade.ask(&mut fields);
                }
                let mut outgoing = Box::new(Request::new(body));
                *outgoing.method_mut() = parts.method;
                *outgoing.uri_mut() = uri;
                *outgoing.headers_mut() = fields;
                if let Some(mirror) = mirror {
                    mirror::unmark(outgoing.headers_mut());
                    record.copy = mirror::copy(
                        &self.shared,
                        mirror,
                        record.addresses(),
                        &outgoing,
                        record.limits(balancer),
                        &conn.load,
                    );
                }
                super::forward::forward(&self.shared, &conn.load, balancer, outgoing, upgrade, record).await
            }
        }
    }
}

impl Service for Proxy {
    type Body = Answer;

    fn call(
        self: Rc<Self>,
        request: Request<Incoming>,
        conn: Rc<ConnInfo>,
    ) -> impl Future<Output = Response<Answer>> + 'static {
        // Boxed here: what stands in front of it would move it, and it is large.
        Box::pin(self.serve(request, conn))
    }

    fn shed(self: Rc<Self>, request: Request<Incoming>, conn: Rc<ConnInfo>) -> Response<Answer> {
        let (parts, _) = request.into_parts();
        let (record, _) = self.begin(&parts, &conn, self.local());
        refuse(Refusal::Overload, record)
    }

    fn passes_through(&self) -> bool {
        !self.local().snapshot.passed.is_empty()
    }

    fn pass_through(&self, name: &HostName, conn: &ConnInfo) -> Option<Tunnel> {
        let local = self.local();
        let route = local.snapshot.passed.find(name.as_str(), &local.snapshot.router)?;
        let Target::Passthrough(balancer) = &local.snapshot.targets[route] else { return None };
        let client = conn.peer.ip();
        let balancer = balancer.clone();
        // No request, no method.
        let mut record =
            self.blank(client, conn, Method::from_bytes(b"-").unwrap_or_default(), local.clone());
        let admitted =
            local.snapshot.policies[route].admit(client, &HeaderMap::new(), record.start.into_std());
        let balancer = admitted.map_err(Refusal::Denied).map(|pass| {
            record.pass = pass;
            balancer
        });
        record.host = Some(name.as_str().into());
        record.route = Some(route);
        record.passed = true;
        Some(Passage { balancer, record }.into())
    }

    fn unreadable(&self, conn: &ConnInfo, status: u16, reason: &'static str) {
        super::record::unreadable(&self.shared, self.request_id(), conn, status, reason);
    }
}

/// For the log: the host of a request that goes nowhere, if it names one.
fn asked_host(parts: &Parts) -> Option<Box<str>> {
    Authority::of(&parts.uri, &parts.headers).ok().map(|authority| authority.host.as_ref().into())
}

/// What a request is: pure, and everything that is refused before any server is asked.
fn decide<'a>(snapshot: &Snapshot, parts: &'a Parts, conn: &ConnInfo) -> Result<Verdict<'a>, Refusal> {
    if matches!(parts.method, Method::CONNECT | Method::TRACE) {
        return Err(Refusal::Method);
    }
    headers::framing(&parts.headers)?;
    let target = parts.uri.path_and_query().map_or(0, |target| target.as_str().len());
    if target > conn.limits.uri {
        return Err(Refusal::UriTooLong);
    }
    if headers::count(&parts.headers) > conn.limits.fields {
        return Err(Refusal::TooManyFields);
    }
    let authority = Authority::of(&parts.uri, &parts.headers).map_err(Refusal::Host)?;
    if let Some(tls) = &conn.tls
        && tls.sni.as_ref().is_none_or(|sni| sni.as_str() != authority.host)
        && !tls.cert_names.iter().any(|name| name.matches(&authority.host))
    {
        return Err(Refusal::Misdirected);
    }
    // In clear nothing was asked of the client, so nothing may have to be.
    let redirected = conn.tls.is_none() && snapshot.https_port.is_some();
    let asked = conn.tls.as_ref().map_or(TlsPolicy::OPEN, |tls| tls.policy);
    if !redirected && snapshot.tls_policies.of(&authority.host) != asked {
        return Err(Refusal::Misdirected);
    }
    if parts.method == Method::OPTIONS && parts.uri.path() == "*" {
        return Ok(Verdict::Allows);
    }
    let path = path::normalise(parts.uri.path()).map_err(Refusal::Path)?;
    if redirected {
        return if snapshot.router.knows_host(&authority.host) {
            Ok(Verdict::Goes(Decision { authority, path, route: None }))
        } else {
            Err(Refusal::NoRoute)
        };
    }
    let facts = Facts { method: &parts.method, headers: &parts.headers, query: parts.uri.query() };
    match snapshot.router.route_unambiguous(&authority.host, &path, &facts) {
        // The connection was made for this very host, so it is not one of those that are passed through.
        Ok(matched)
            if matches!(snapshot.targets[matched.index], Target::Passthrough(_))
                && conn
                    .tls
                    .as_ref()
                    .and_then(|tls| tls.sni.as_ref())
                    .is_some_and(|sni| sni.as_str() == authority.host) =>
        {
            Err(Refusal::NoRoute)
        }
        Ok(matched) => Ok(Verdict::Goes(Decision { route: Some(matched.index), authority, path })),
        Err(NoRoute::Unknown | NoRoute::Unmet) => Err(Refusal::NoRoute),
        Err(NoRoute::Ambiguous { .. }) => Err(Refusal::AmbiguousPath),
    }
}
