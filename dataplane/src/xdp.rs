//! Loads the XDP program, attaches it to the data interfaces and takes its tables out.
//!
//! The program is embedded; no BPF toolchain is needed to build. Attachments are `bpf_link`s
//! held by file descriptors: when this process ends, however it ends, the kernel detaches the
//! program and the interfaces work as if it had never been there. The tables live on as long
//! as anybody holds a descriptor of them, so metering can read the last totals.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use aya::maps::{Array, MapData, PerCpuArray, XskMap};
use aya::programs::{ProgramError, TestRun as _, TestRunOptions, Xdp, XdpMode};
use aya::{Ebpf, EbpfLoader, Pod};
use topnet_ebpf_abi::{QUEUES_MAX, Steering, Verdict};

use crate::io::SocketHandle;

static OBJECT: &[u8] = aya::include_bytes_aligned!("../../ebpf/object/topnet.o");

/// What a program returns for a packet that goes elsewhere, from <linux/bpf.h>.
const XDP_REDIRECT: u32 = 4;

/// The entry points, by port.
const ENTRY_POINTS: [&str; topnet_ebpf_abi::PORTS_MAX as usize] = ["port_0", "port_1"];

/// Why the program does not stand on an interface.
#[derive(Debug, thiserror::Error)]
pub enum XdpError {
    /// The program or its maps were refused.
    #[error("cannot load the XDP program: {reason}; {mend}")]
    Load {
        /// The kernel's or the loader's words.
        reason: String,
        /// What to do.
        mend: &'static str,
    },
    /// One interface.
    #[error(
        "interface {interface}: cannot attach the XDP program in {mode} mode: {reason}; {mend}"
    )]
    Attach {
        /// The interface.
        interface: String,
        /// `native` or `generic`.
        mode: &'static str,
        /// The kernel's words.
        reason: String,
        /// What to do.
        mend: &'static str,
    },
}

/// Where in the kernel the program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// In the interface's driver.
    Native,
    /// In the generic receive path, after a socket buffer was made.
    Generic,
}

impl Mode {
    const fn name(self) -> &'static str {
        match self {
            Mode::Native => "native",
            Mode::Generic => "generic",
        }
    }
}

#[repr(transparent)]
#[derive(Clone, Copy)]
struct SteeringValue(Steering);

// SAFETY: `Steering` is `repr(C)`, has no padding (a const assertion holds its size to the sum
// of its fields) and allows every bit pattern.
unsafe impl Pod for SteeringValue {}

/// The loaded program. Dropping it detaches it.
pub struct Program {
    ebpf: Ebpf,
}

/// The tables' descriptors.
///
/// Both can be mapped for writing by whoever has them. The kernel knows read-only descriptors
/// of a map but refuses to map them (`bpf_map_mmap` wants a shared mapping, which a file that
/// is not open for writing never gets), so that metering sees usage read-only is
/// `topnet-unit`'s doing. It gives metering no power: who may write credit can let everything
/// pass anyway.
pub struct Tables {
    /// What every slot has forwarded.
    pub usage: OwnedFd,
    /// How much every slot may forward.
    pub credit: OwnedFd,
}

impl Program {
    /// Loads the program with tables of `slots` slots.
    pub fn load(slots: u32) -> Result<Self, XdpError> {
        let ebpf = EbpfLoader::new()
            .map_max_entries("usage", slots)
            .map_max_entries("credit", slots)
            .load(OBJECT)
            .map_err(|error| load_error(&error))?;
        Ok(Self { ebpf })
    }

    /// Takes descriptors of the tables.
    pub fn tables(&self) -> Result<Tables, XdpError> {
        let table = |name| {
            let fd = self.array(name)?.fd().as_fd().try_clone_to_owned();
            fd.map_err(|error| load_error(&error))
        };
        Ok(Tables {
            usage: table("usage")?,
            credit: table("credit")?,
        })
    }

    /// Tells the program what to steer on a port.
    pub fn steer(&mut self, port: u32, steering: Steering) -> Result<(), XdpError> {
        let map = self.map_mut("steering")?;
        let mut array = Array::<_, SteeringValue>::try_from(map).map_err(|e| load_error(&e))?;
        array
            .set(port, SteeringValue(steering), 0)
            .map_err(|error| load_error(&error))
    }

    /// Makes a socket the destination of what is steered on its queue.
    pub fn add_socket(&mut self, socket: &SocketHandle) -> Result<(), XdpError> {
        let key = u32::from(socket.binding.port.0) * QUEUES_MAX + socket.binding.queue;
        let map = self.map_mut("sockets")?;
        let mut sockets = XskMap::try_from(map).map_err(|error| load_error(&error))?;
        sockets
            .set(key, socket.as_raw_fd(), 0)
            .map_err(|error| load_error(&error))
    }

    /// Attaches a port's entry point to its interface.
    pub fn attach(
        &mut self,
        port: u32,
        interface: &str,
        interface_index: u32,
        mode: Mode,
    ) -> Result<(), XdpError> {
        let program = self.entry_point(port)?;
        let xdp_mode = match mode {
            Mode::Native => XdpMode::Driver,
            Mode::Generic => XdpMode::Skb,
        };
        let attached = program.attach_to_if_index(interface_index, xdp_mode);
        attached.map(|_| ()).map_err(|error| XdpError::Attach {
            interface: interface.to_owned(),
            mode: mode.name(),
            mend: attach_mend(&error, mode),
            reason: with_sources(&error),
        })
    }

    /// Runs a port's entry point over a frame that no interface has seen, and says whether a socket
    /// would have got it. It is counted as others are.
    pub fn try_out(&mut self, port: u32, frame: &[u8]) -> Result<bool, XdpError> {
        let options = TestRunOptions {
            data_in: Some(frame),
            repeat: 1,
            ..TestRunOptions::default()
        };
        let tried = self.entry_point(port)?.test_run(options);
        let tried = tried.map_err(|error| load_error(&error))?;
        Ok(tried.return_value == XDP_REDIRECT)
    }

    /// A port's entry point, loaded when it is asked for first.
    fn entry_point(&mut self, port: u32) -> Result<&mut Xdp, XdpError> {
        let name = ENTRY_POINTS[port as usize];
        let missing = || {
            load_error(&io::Error::other(format!(
                "the object has no program {name}"
            )))
        };
        let program = self.ebpf.program_mut(name).ok_or_else(missing)?;
        let program: &mut Xdp = program.try_into().map_err(|error| load_error(&error))?;
        if program.fd().is_err() {
            program.load().map_err(|error| load_error(&error))?;
        }
        Ok(program)
    }

    /// How often each verdict was given, on all ports and CPUs.
    pub fn verdicts(&self) -> Result<Vec<(Verdict, u64)>, XdpError> {
        let map = self
            .ebpf
            .map("verdicts")
            .ok_or_else(|| missing_map("verdicts"))?;
        let counts = PerCpuArray::<_, u64>::try_from(map).map_err(|error| load_error(&error))?;
        Verdict::ALL
            .into_iter()
            .map(|verdict| {
                let cpus = counts
                    .get(&(verdict as u32), 0)
                    .map_err(|error| load_error(&error))?;
                Ok((verdict, cpus.iter().sum()))
            })
            .collect()
    }

    fn array(&self, name: &str) -> Result<&MapData, XdpError> {
        match self.ebpf.map(name) {
            Some(aya::maps::Map::Array(data)) => Ok(data),
            _ => Err(missing_map(name)),
        }
    }

    fn map_mut(&mut self, name: &str) -> Result<&mut aya::maps::Map, XdpError> {
        self.ebpf.map_mut(name).ok_or_else(|| missing_map(name))
    }
}

fn missing_map(name: &str) -> XdpError {
    load_error(&io::Error::other(format!("the object has no map {name}")))
}

fn load_error(error: &(dyn std::error::Error + 'static)) -> XdpError {
    let mend = match os_error(error) {
        Some(libc::EPERM | libc::EACCES) => "allow the process CAP_BPF and CAP_NET_ADMIN",
        Some(libc::ENOMEM | libc::E2BIG) => "lower dataplane.slots_max",
        _ => "check that the kernel is 5.15 or newer and see `cargo xtask doctor`",
    };
    XdpError::Load {
        reason: with_sources(error),
        mend,
    }
}

fn attach_mend(error: &ProgramError, mode: Mode) -> &'static str {
    match (os_error(error), mode) {
        (Some(libc::EBUSY | libc::EEXIST), _) => {
            "another XDP program is there; detach it with `ip link set dev NAME xdp off`"
        }
        (Some(libc::EOPNOTSUPP), Mode::Native) => {
            "its driver has no native XDP: choose another interface, or set dataplane.io = \
             \"af-xdp-generic\" (slower)"
        }
        (Some(libc::EPERM), _) => "allow the process CAP_NET_ADMIN",
        (Some(libc::ENODEV), _) => "choose an interface that `ip link` lists",
        (Some(libc::EINVAL | libc::ERANGE), Mode::Native) => {
            "its MTU may be too large for native XDP (at most about 3,500), or its queues fewer \
             than its peer's: lower the MTU"
        }
        _ => "look at the kernel's log with `dmesg`",
    }
}

fn os_error(error: &(dyn std::error::Error + 'static)) -> Option<i32> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(code) = error
            .downcast_ref::<io::Error>()
            .and_then(io::Error::raw_os_error)
        {
            return Some(code);
        }
        next = error.source();
    }
    None
}

fn with_sources(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        let source = error.to_string();
        // Some wrappers print their source as well.
        if !text.contains(&source) {
            text = format!("{text}: {source}");
        }
        next = error.source();
    }
    text
}
