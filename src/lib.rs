//! Starlock: a reverse proxy with built-in automatic TLS.
//!
//! The rooms, bottom-up; a room uses only rooms above it in this list (`tests/it/architecture.rs` checks it):
//!
//! * [`name`], [`secret`], [`clock`], [`backoff`]: vocabulary without behaviour of their own.
//! * [`task`] spawns and stops everything; [`conn`] says what is known of a connection; [`issuer`] is what a
//!   certificate authority looks like to the rest of the house; [`http_client`] speaks to CAs and DNS vendors.
//! * [`telemetry`] logs and counts; [`resolver`] asks DNS questions.
//! * [`tls`] holds the certificates being served; [`storage`] keeps state; [`dns`] writes TXT records;
//!   [`balance`] picks servers, [`upstream`] connects to them, [`probe`] asks them whether they are well; [`policy`] is what a route asks of requests and adds to answers.
//! * [`responder`] answers DNS questions; [`challenge`] proves control of a name; [`listen`] accepts
//!   connections; [`proxy`] routes and forwards; [`local_ca`] signs for laptops, and
//!   [`trust`] has systems and browsers believe it; [`import`] reads what other
//!   programs keep.
//! * [`acme`] orders certificates; [`certs`] decides when; [`deploy`] passes them on, [`notify`] tells of dangers.
//! * [`config`] turns a file into a plan; [`admin`] is the socket operators talk to; [`doctor`] looks at
//!   everything before a CA is asked; [`app`] wires it all;
//!   [`cli`] is what a person types.

pub mod acme;
pub mod admin;
pub mod app;
pub mod backoff;
pub mod balance;
pub mod certs;
pub mod challenge;
pub mod cli;
pub mod clock;
pub mod config;
pub mod conn;
pub mod deploy;
pub mod dns;
pub mod doctor;
pub mod http_client;
pub mod import;
pub mod issuer;
pub mod ledger;
pub mod listen;
pub mod local_ca;
pub mod name;
pub mod notify;
pub mod policy;
pub mod probe;
pub mod proxy;
pub mod resolver;
pub mod responder;
pub mod secret;
pub mod simulate;
pub mod storage;
pub mod task;
pub mod telemetry;
pub mod tls;
pub mod trust;
pub mod upstream;
