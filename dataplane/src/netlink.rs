//! The kernel's interfaces, routes and neighbours, kept fresh.
//!
//! [`Interfaces`] answers questions at start. [`Monitor`] subscribes to changes and builds a
//! new [`Forwarding`] after each, from fresh dumps: a lost notification costs at most
//! [`REFRESH`]. Next hops that the worker asks for become *managed* neighbours
//! (`NTF_EXT_MANAGED`): AF_XDP traffic never refreshes an entry, so the kernel is told to.

mod messages;

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use futures::channel::mpsc::UnboundedReceiver;
use futures::{StreamExt, TryStreamExt};
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::address::AddressAttribute;
use rtnetlink::packet_route::link::LinkAttribute;
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourExtFlags, NeighbourFlags, NeighbourMessage,
    NeighbourState,
};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::sys::SocketAddr;
use rtnetlink::{Handle, LinkUnspec, MulticastGroup, RouteMessageBuilder};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use topnet_config::Ipv4Subnet;

use self::messages::{address6, neighbour, route};
use crate::forwarding::{Forwarding, Neighbour, Port, Route, RouteTable};
use crate::packet::MacAddress;

/// How often everything is read again although nothing was heard.
const REFRESH: Duration = Duration::from_secs(30);
/// How long changes are collected before a snapshot is built.
const SETTLE: Duration = Duration::from_millis(5);
/// Neighbours that we ask the kernel to keep resolved.
const MANAGED_MAX: usize = 4096;

const TABLE_LOCAL: u32 = 255;
const TABLE_MAIN: u32 = 254;
const TABLE_DEFAULT: u32 = 253;
/// Tables in the order of the kernel's default rules.
const TABLES: [u32; 3] = [TABLE_LOCAL, TABLE_MAIN, TABLE_DEFAULT];

/// What the kernel would not tell.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// No netlink socket.
    #[error(
        "cannot ask the kernel about its interfaces: {0}; allow the process AF_NETLINK sockets"
    )]
    Socket(#[from] io::Error),
    /// A request failed.
    #[error("cannot read the kernel's {what}: {source}; look at the kernel's log with `dmesg`")]
    Request {
        /// Links, addresses, routes or neighbours.
        what: &'static str,
        /// Why not.
        source: rtnetlink::Error,
    },
    /// A change was refused.
    #[error("cannot set the tunnel's {what}: {source}; allow the process CAP_NET_ADMIN")]
    SetUp {
        /// Interfaces or addresses.
        what: &'static str,
        /// Why not.
        source: rtnetlink::Error,
    },
    /// A data interface is gone, and with it our program and sockets.
    #[error(
        "data interface {0} is gone; bring an interface of that name back and start the data plane again"
    )]
    Vanished(String),
    /// The subscription ended.
    #[error("the kernel's notifications about routes ended; restart the data plane")]
    Ended,
}

fn request(what: &'static str) -> impl Fn(rtnetlink::Error) -> NetlinkError {
    move |source| NetlinkError::Request { what, source }
}

fn set_up(what: &'static str) -> impl Fn(rtnetlink::Error) -> NetlinkError {
    move |source| NetlinkError::SetUp { what, source }
}

/// An interface as it is at start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// The kernel's index.
    pub index: u32,
    /// Its hardware address; `None` if it has none of six bytes.
    pub mac: Option<MacAddress>,
    /// Its own IPv4 addresses.
    pub addresses: Vec<Ipv4Addr>,
    /// Its own IPv6 addresses that others may use, the best first.
    pub addresses6: Vec<Ipv6Addr>,
    /// Largest packet that it carries.
    pub mtu_bytes: u32,
    /// Receive queues in use.
    pub queues: u32,
}

/// A connection to the kernel's routing.
pub struct Connection {
    handle: Handle,
    messages: UnboundedReceiver<(NetlinkMessage<RouteNetlinkMessage>, SocketAddr)>,
}

impl Connection {
    /// Connects and subscribes. To be called within a runtime.
    pub fn open() -> Result<Self, NetlinkError> {
        let groups = [
            MulticastGroup::Link,
            MulticastGroup::Neigh,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv6Ifaddr,
            MulticastGroup::Ipv6Route,
        ];
        let (connection, handle, messages) = rtnetlink::new_multicast_connection(&groups)?;
        tokio::spawn(connection);
        Ok(Self { handle, messages })
    }

    /// Connects and hears of nothing by itself: for whoever only asks.
    pub fn open_quiet() -> Result<Self, NetlinkError> {
        let (connection, handle, messages) = rtnetlink::new_connection()?;
        tokio::spawn(connection);
        Ok(Self { handle, messages })
    }

    /// The interface of this name; `None` if there is none.
    pub async fn interface(&self, name: &str) -> Result<Option<Interface>, NetlinkError> {
        let mut links = self.handle.link().get().match_name(name).execute();
        let link = match links.try_next().await {
            Ok(Some(link)) => link,
            Ok(None) => return Ok(None),
            Err(rtnetlink::Error::NetlinkError(error)) if error.raw_code() == -libc::ENODEV => {
                return Ok(None);
            }
            Err(error) => return Err(request("interfaces")(error)),
        };
        let index = link.header.index;
        let mac = link
            .attributes
            .iter()
            .find_map(|attribute| match attribute {
                LinkAttribute::Address(bytes) => MacAddress::from_slice(bytes),
                _ => None,
            });
        let mtu_bytes = link
            .attributes
            .iter()
            .find_map(|attribute| match attribute {
                LinkAttribute::Mtu(bytes) => Some(*bytes),
                _ => None,
            });
        let (mut addresses, mut addresses6) = (Vec::new(), Vec::new());
        let mut stream = self
            .handle
            .address()
            .get()
            .set_link_index_filter(index)
            .execute();
        while let Some(address) = stream.try_next().await.map_err(request("addresses"))? {
            if address.header.index != index {
                continue;
            }
            addresses.extend(
                address
                    .attributes
                    .iter()
                    .find_map(|attribute| match attribute {
                        AddressAttribute::Local(IpAddr::V4(address)) => Some(*address),
                        _ => None,
                    }),
            );
            addresses6.extend(address6(&address));
        }
        // The kernel lists the newest first.
        addresses6.reverse();
        addresses6.sort_by_key(|(rank, _)| *rank);
        Ok(Some(Interface {
            name: name.to_owned(),
            index,
            mac,
            addresses,
            addresses6: addresses6.into_iter().map(|(_, address)| address).collect(),
            mtu_bytes: mtu_bytes.unwrap_or_default(),
            queues: queues(name),
        }))
    }

    /// Gives a new device its MTU and its addresses, and sets it up. The networks of the
    /// addresses are routed to it then.
    pub async fn set_up(
        &self,
        name: &str,
        mtu_bytes: u32,
        addresses: &[(IpAddr, u8)],
    ) -> Result<(), NetlinkError> {
        let Some(Interface { index, .. }) = self.interface(name).await? else {
            return Err(NetlinkError::Vanished(name.to_owned()));
        };
        let up = LinkUnspec::new_with_index(index)
            .mtu(mtu_bytes)
            .up()
            .build();
        let set = self.handle.link().set(up).execute();
        set.await.map_err(set_up("interfaces"))?;
        for (address, prefix_bits) in addresses {
            let add = self.handle.address().add(index, *address, *prefix_bits);
            add.execute().await.map_err(set_up("addresses"))?;
        }
        Ok(())
    }

    /// Gives a device its MTU.
    pub async fn set_mtu(&self, name: &str, mtu_bytes: u32) -> Result<(), NetlinkError> {
        let Some(Interface { index, .. }) = self.interface(name).await? else {
            return Err(NetlinkError::Vanished(name.to_owned()));
        };
        let link = LinkUnspec::new_with_index(index).mtu(mtu_bytes).build();
        let set = self.handle.link().set(link).execute();
        set.await.map_err(set_up("interfaces"))
    }

    /// Routes a network to a device.
    pub async fn route_to(&self, name: &str, network: Ipv4Subnet) -> Result<(), NetlinkError> {
        let Some(Interface { index, .. }) = self.interface(name).await? else {
            return Err(NetlinkError::Vanished(name.to_owned()));
        };
        let route = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(network.network(), network.prefix_bits())
            .output_interface(index)
            .build();
        let add = self.handle.route().add(route).execute();
        add.await.map_err(set_up("routes"))
    }

    /// Starts to watch on behalf of the data interfaces.
    #[must_use]
    pub fn monitor(self, interfaces: &[Interface]) -> Monitor {
        Monitor {
            handle: self.handle,
            messages: self.messages,
            interfaces: interfaces
                .iter()
                .map(|i| (i.index, i.name.clone()))
                .collect(),
            managed: HashSet::new(),
            tables: Arc::default(),
        }
    }
}

/// Receive queues in use. Of a driver that does not tell, only the first is certain.
fn queues(name: &str) -> u32 {
    let queues = crate::io::receive_queues(name).unwrap_or(1);
    queues.clamp(1, topnet_ebpf_abi::QUEUES_MAX)
}

/// Watches routes and neighbours.
pub struct Monitor {
    handle: Handle,
    messages: UnboundedReceiver<(NetlinkMessage<RouteNetlinkMessage>, SocketAddr)>,
    /// Index and name.
    interfaces: Vec<(u32, String)>,
    managed: HashSet<Neighbour>,
    tables: Arc<[RouteTable]>,
}

/// What a notification makes out of date.
#[derive(Clone, Copy, Debug, Default)]
struct Stale {
    routes: bool,
    anything: bool,
}

impl Monitor {
    /// A snapshot of now.
    pub async fn snapshot(&mut self) -> Result<Forwarding, NetlinkError> {
        self.build(Stale {
            routes: true,
            anything: true,
        })
        .await
    }

    /// Gives every new snapshot to `publish` and asks for the neighbours in `wanted`, until the
    /// kernel's notifications end.
    pub async fn run(
        &mut self,
        mut wanted: mpsc::Receiver<Neighbour>,
        mut publish: impl AsyncFnMut(Forwarding),
    ) -> Result<(), NetlinkError> {
        let mut refresh_at = Instant::now() + REFRESH;
        let mut last = (HashMap::new(), Vec::new());
        loop {
            let mut stale = Stale::default();
            tokio::select! {
                message = self.messages.next() => {
                    stale.note(&message.ok_or(NetlinkError::Ended)?.0);
                }
                neighbour = wanted.recv() => {
                    let Some(neighbour) = neighbour else { return Ok(()) };
                    self.manage(neighbour).await;
                    continue;
                }
                () = sleep_until(refresh_at) => stale = Stale { routes: true, anything: true },
            }
            if !stale.anything {
                continue;
            }
            // Changes come in groups; one snapshot for each is enough.
            tokio::time::sleep(SETTLE).await;
            while let Ok(message) = self.messages.try_recv() {
                stale.note(&message.0);
            }
            if stale.routes {
                refresh_at = Instant::now() + REFRESH;
            }
            let forwarding = self.build(stale).await?;
            let same = (&forwarding.neighbours, &forwarding.ports) == (&last.0, &last.1);
            if same && !stale.routes {
                continue;
            }
            last = (forwarding.neighbours.clone(), forwarding.ports.clone());
            publish(forwarding).await;
        }
    }

    async fn build(&mut self, stale: Stale) -> Result<Forwarding, NetlinkError> {
        if stale.routes {
            self.tables = self.read_routes().await?;
        }
        Ok(Forwarding {
            tables: Arc::clone(&self.tables),
            neighbours: self.read_neighbours().await?,
            ports: self.read_ports().await?,
        })
    }

    async fn read_ports(&self) -> Result<Vec<Port>, NetlinkError> {
        let mut macs = HashMap::new();
        let mut links = self.handle.link().get().execute();
        while let Some(link) = links.try_next().await.map_err(request("interfaces"))? {
            for attribute in &link.attributes {
                if let LinkAttribute::Address(bytes) = attribute
                    && let Some(mac) = MacAddress::from_slice(bytes)
                {
                    macs.insert(link.header.index, mac);
                }
            }
        }
        self.interfaces
            .iter()
            .map(|(interface, name)| match macs.get(interface) {
                Some(mac) => Ok(Port {
                    interface: *interface,
                    mac: *mac,
                }),
                None => Err(NetlinkError::Vanished(name.clone())),
            })
            .collect()
    }

    async fn read_routes(&self) -> Result<Arc<[RouteTable]>, NetlinkError> {
        let all = [
            RouteMessageBuilder::<Ipv4Addr>::new().build(),
            RouteMessageBuilder::<Ipv6Addr>::new().build(),
        ];
        let mut tables: [Vec<Route>; TABLES.len()] = Default::default();
        for version in all {
            let mut messages = self.handle.route().get(version).execute();
            while let Some(message) = messages.try_next().await.map_err(request("routes"))? {
                if let Some((table, route)) = route(&message)
                    && let Some(position) = TABLES.iter().position(|known| *known == table)
                {
                    tables[position].push(route);
                }
            }
        }
        Ok(tables.into_iter().map(RouteTable::from_iter).collect())
    }

    async fn read_neighbours(&self) -> Result<HashMap<Neighbour, MacAddress>, NetlinkError> {
        let mut neighbours = HashMap::new();
        for version in [AddressFamily::Inet, AddressFamily::Inet6] {
            let request_all = self.handle.neighbours().get().set_address_family(version);
            let mut messages = request_all.execute();
            while let Some(message) = messages.try_next().await.map_err(request("neighbours"))? {
                neighbours.extend(neighbour(&message));
            }
        }
        Ok(neighbours)
    }

    /// Asks the kernel to resolve a neighbour and to keep it resolved.
    async fn manage(&mut self, neighbour: Neighbour) {
        if self.managed.len() >= MANAGED_MAX && !self.managed.contains(&neighbour) {
            tracing::warn!(
                address = %neighbour.address,
                "too many neighbours to keep resolved ({MANAGED_MAX}); this one is resolved when needed"
            );
            self.resolve(neighbour, NeighbourExtFlags::empty()).await;
            return;
        }
        // Kernels before 5.16 refuse the flag; then it is resolved whenever it is asked for.
        if !self.resolve(neighbour, NeighbourExtFlags::Managed).await {
            self.resolve(neighbour, NeighbourExtFlags::empty()).await;
            return;
        }
        self.managed.insert(neighbour);
    }

    async fn resolve(&self, neighbour: Neighbour, extended: NeighbourExtFlags) -> bool {
        let Neighbour { interface, address } = neighbour;
        let mut add = self
            .handle
            .neighbours()
            .add(interface, address)
            .state(NeighbourState::None)
            .replace();
        if extended.is_empty() {
            add = add.flags(NeighbourFlags::Use);
        } else {
            add.message_mut()
                .attributes
                .push(NeighbourAttribute::ExtFlags(extended));
        }
        match add.execute().await {
            Ok(()) => true,
            Err(error) => {
                tracing::debug!(%address, interface, %error, "cannot ask for a neighbour");
                false
            }
        }
    }

    /// Gives the neighbours that we asked for back to the kernel's own care.
    pub async fn release(&mut self) {
        for neighbour in std::mem::take(&mut self.managed) {
            let mut message = NeighbourMessage::default();
            message.header.ifindex = neighbour.interface;
            let (family, address) = match neighbour.address {
                IpAddr::V4(address) => (AddressFamily::Inet, NeighbourAddress::Inet(address)),
                IpAddr::V6(address) => (AddressFamily::Inet6, NeighbourAddress::Inet6(address)),
            };
            message.header.family = family;
            message
                .attributes
                .push(NeighbourAttribute::Destination(address));
            // That it is gone already is what we want.
            let _ = self.handle.neighbours().del(message).execute().await;
        }
    }
}

impl Stale {
    fn note(&mut self, message: &NetlinkMessage<RouteNetlinkMessage>) {
        match &message.payload {
            NetlinkPayload::InnerMessage(
                RouteNetlinkMessage::NewNeighbour(_) | RouteNetlinkMessage::DelNeighbour(_),
            ) => self.anything = true,
            // Routes, links, addresses, and an overrun, which may have hidden any of them.
            _ => {
                *self = Self {
                    routes: true,
                    anything: true,
                }
            }
        }
    }
}
