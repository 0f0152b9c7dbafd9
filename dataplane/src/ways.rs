//! Chooses the way in and out: frames or the kernel's sockets.
//!
//! `dataplane.io` may name one. `auto` tries: frames that the drivers share with us are best; where
//! they are copied, the kernel's sockets carry more, if the kernel routes; else copied frames
//! will do. What was chosen is shown with the reason.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};

use rustix::fd::OwnedFd;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, socket_with, sockopt};
use topnet_api::IoStatus;
use topnet_config::{Dataplane, Io};

use crate::error::{RunError, system};
use crate::forwarding::PortIndex;
use crate::io::{AfXdp, Egress, GatewayAddresses, Kernel, KernelPlan, SocketHandle};
use crate::netlink::{Connection, Interface};
use crate::ports::{
    CONFIGURED, DataPort, attach, bind_of, bindings, copying_reason, frames_status, kernel_status,
};
use crate::routing;
use crate::xdp::Program;

/// A way in and out that stands.
pub(crate) enum Way {
    Frames(Box<Frames>),
    /// One for each worker.
    Kernel(Vec<Kernel>),
}

/// Sockets and the program that steers to them.
pub(crate) struct Frames {
    pub(crate) program: Program,
    /// Of each worker.
    pub(crate) sockets: Vec<AfXdp>,
    handles: Vec<SocketHandle>,
    /// Hold the WireGuard port in the kernel, so that nobody else takes it and the kernel does
    /// not answer "port unreachable" while no socket of ours takes the packets.
    pub(crate) placeholders: Vec<UdpSocket>,
}

/// What the choice depends on.
pub(crate) struct Chooser<'a> {
    pub(crate) section: &'a Dataplane,
    pub(crate) connection: &'a Connection,
    pub(crate) ports: &'a [DataPort],
    pub(crate) gateway: GatewayAddresses,
    /// Event counters of as many workers as there shall be.
    pub(crate) wakes: &'a [OwnedFd],
}

impl Chooser<'_> {
    /// Brings up what is configured, or the best that there is.
    pub(crate) async fn choose(&self) -> Result<(Way, IoStatus), RunError> {
        match self.section.io {
            Io::Kernel => self.kernel(CONFIGURED.to_owned()).await,
            Io::Auto => self.best().await,
            Io::AfXdpZeroCopy | Io::AfXdpCopy | Io::AfXdpGeneric => {
                let frames = self.frames()?;
                Ok(self.with_status(frames, None))
            }
        }
    }

    async fn best(&self) -> Result<(Way, IoStatus), RunError> {
        let reason = match (self.frames(), routing::check(self.section)) {
            (Ok(frames), checked) => match frames.handles.iter().find(|h| !h.zero_copy) {
                Some(copying) if checked.is_ok() => copying_reason(copying),
                _ => return Ok(self.with_status(frames, checked.err())),
            },
            (Err(error @ (RunError::Xdp(_) | RunError::AfXdp(_))), Ok(())) => error.to_string(),
            (Err(error), _) => return Err(error),
        };
        self.kernel(reason).await
    }

    fn with_status(&self, frames: Frames, besides: Option<RunError>) -> (Way, IoStatus) {
        let (io, handles) = (self.section.io, &frames.handles);
        let workers = frames.sockets.len() as u32;
        if workers < self.section.workers {
            tracing::warn!(
                workers,
                "an interface has fewer queues than dataplane.workers: `ethtool -L` changes that"
            );
        }
        let (interfaces, besides) = (self.interfaces(), besides.as_ref());
        let status = frames_status(io, handles, &interfaces, workers, self.gateway, besides);
        (Way::Frames(Box::new(frames)), status)
    }

    fn frames(&self) -> Result<Frames, RunError> {
        let section = self.section;
        let port = section.wireguard_port;
        let held = self.gateway.each().map(|address| hold_port(address, port));
        let placeholders = held.collect::<Result<_, _>>()?;
        let mut program = Program::load(section.slots_max)?;
        let (mut sockets, mut handles) = (Vec::new(), Vec::new());
        let bindings = bindings(self.ports, section.workers);
        for (bindings, wake) in bindings.iter().zip(self.wakes()?) {
            let (bound, some) = AfXdp::new(bindings, bind_of(section.io), wake)?;
            sockets.push(bound);
            handles.extend(some);
        }
        attach(&mut program, section, self.ports, self.gateway, &handles)?;
        Ok(Frames {
            program,
            sockets,
            handles,
            placeholders,
        })
    }

    async fn kernel(&self, reason: String) -> Result<(Way, IoStatus), RunError> {
        routing::check(self.section)?;
        let uplink = self.ports.iter().position(|port| port.takes_inner);
        let plan = KernelPlan {
            tunnel_interface: self.section.tunnel_interface.clone(),
            wireguard_port: self.section.wireguard_port,
            egress: Egress::Uplink(PortIndex(uplink.unwrap_or_default() as u8)),
        };
        let kernel = Kernel::open(&plan, self.wakes()?)?;
        routing::set_up(self.section, self.connection).await?;
        let status = kernel_status(reason, &self.interfaces(), kernel.len() as u32);
        Ok((Way::Kernel(kernel), status))
    }

    fn interfaces(&self) -> Vec<Interface> {
        let interfaces = self.ports.iter().map(|port| port.interface.clone());
        interfaces.collect()
    }

    fn wakes(&self) -> Result<Vec<OwnedFd>, RunError> {
        cloned(self.wakes)
    }
}

/// Other handles of the same event counters.
pub(crate) fn cloned(wakes: &[OwnedFd]) -> Result<Vec<OwnedFd>, RunError> {
    let cloned = wakes.iter().map(OwnedFd::try_clone);
    let cloned = cloned.collect::<io::Result<_>>();
    cloned.map_err(system("make an event counter"))
}

fn hold_port(address: IpAddr, port: u16) -> Result<UdpSocket, RunError> {
    let bound = || match address {
        IpAddr::V4(_) => UdpSocket::bind((address, port)),
        IpAddr::V6(_) => {
            let flags = SocketFlags::CLOEXEC;
            let socket = socket_with(AddressFamily::INET6, SocketType::DGRAM, flags, None)?;
            // An address that nobody has answered for yet (RFC 4862) will be ours in a second.
            sockopt::set_ipv6_freebind(&socket, true)?;
            bind(&socket, &SocketAddr::new(address, port))?;
            Ok(socket.into())
        }
    };
    bound().map_err(|source: io::Error| RunError::Port {
        port,
        address,
        source,
    })
}
