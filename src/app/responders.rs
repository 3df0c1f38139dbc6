//! The responder's sockets over reloads: an address is bound before anything changes and let go after everything has.

use std::collections::HashMap;
use std::net::SocketAddr;

use crate::listen::Inherited;
use crate::responder::{BindError, Bound, ResponderSpec, Running, TxtTable, ZoneReader, ZoneWriter, zones};
use crate::task::Shutdown;

/// The running responders, one for each configured address, all over the same zones.
pub(super) struct Responders {
    writer: ZoneWriter,
    reader: ZoneReader,
    running: HashMap<SocketAddr, Running>,
    shutdown: Shutdown,
}

/// Sockets that a plan needs and that are not there yet.
pub(super) struct PreparedResponders {
    bound: Vec<(SocketAddr, Bound)>,
    /// Where the plan's responder answers, with real ports.
    pub(super) addresses: Vec<SocketAddr>,
}

impl Responders {
    pub(super) fn new(shutdown: Shutdown) -> Self {
        let (writer, reader) = zones(&nothing());
        Self { writer, reader, running: HashMap::new(), shutdown }
    }

    /// The provider `builtin`.
    pub(super) fn txt_table(&self) -> TxtTable {
        self.writer.txt_table()
    }

    pub(super) fn addresses(&self) -> Vec<SocketAddr> {
        self.running.values().flat_map(|r| r.addresses().iter().copied()).collect()
    }

    /// Takes what `spec` needs beside what is already there: an inherited socket first, else by binding.
    pub(super) fn prepare(
        &self,
        spec: Option<&ResponderSpec>,
        inherited: &mut Inherited,
    ) -> Result<PreparedResponders, BindError> {
        let (mut bound, mut addresses) = (Vec::new(), Vec::new());
        for listen in spec.into_iter().flat_map(|s| &s.listen) {
            match self.running.get(listen).filter(|running| !running.is_finished()) {
                Some(running) => addresses.extend_from_slice(running.addresses()),
                None => {
                    let given = inherited.take_dns(*listen);
                    let new = Bound::of_given(*listen, given.udp, given.tcp)?;
                    addresses.extend_from_slice(new.addresses());
                    bound.push((*listen, new));
                }
            }
        }
        Ok(PreparedResponders { bound, addresses })
    }

    /// Answers for `spec` from now on.
    pub(super) fn commit(&mut self, prepared: PreparedResponders, spec: Option<&ResponderSpec>) {
        self.writer.replace(spec.unwrap_or(&nothing()));
        for (listen, bound) in prepared.bound {
            match bound.start(self.reader.clone(), &self.shutdown) {
                Ok(running) => drop(self.running.insert(listen, running)),
                // Only without a thread or a file left; the next reload or restart binds it again.
                Err(error) => {
                    tracing::error!(%listen, %error, "the responder could not be started at this address");
                }
            }
        }
        let wanted = spec.map(|s| s.listen.as_slice()).unwrap_or_default();
        self.running.retain(|listen, _| wanted.contains(listen));
    }
}

fn nothing() -> ResponderSpec {
    ResponderSpec { listen: Vec::new(), zone: None, nameservers: Vec::new(), challenge_names: Vec::new() }
}
