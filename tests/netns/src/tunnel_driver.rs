//! Lets a process that is not root open the TUN driver, without changing the machine.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

use rustix::fs::{CWD, FileType, Mode, mknodat};

use crate::{Error, Result};

const DRIVER: &str = "/dev/net/tun";
const EVERYBODY: u32 = 0o666;

/// `command` as it is where everybody may open the TUN driver, as udev leaves it. Elsewhere (a
/// container, a machine without udev) the command sees a node of its own in its place, which is
/// made in `dir` and mounted in a mount namespace of its own. What `command` was told about its
/// standard streams is to be told to the result.
pub fn with_tunnel_driver(dir: &Path, command: Command) -> Result<Command> {
    let file_error = |path: &Path| {
        let path = path.display().to_string();
        move |source| Error::File { path, source }
    };
    let driver = Path::new(DRIVER);
    let found = fs::metadata(driver).map_err(file_error(driver))?;
    if found.mode() & EVERYBODY == EVERYBODY {
        return Ok(command);
    }
    let node = dir.join("tun");
    if !node.exists() {
        let mode = Mode::from_raw_mode(EVERYBODY);
        mknodat(CWD, &node, FileType::CharacterDevice, mode, found.rdev())
            .map_err(|error| file_error(&node)(error.into()))?;
        // Whatever the process's mask is.
        let permissions = fs::Permissions::from_mode(EVERYBODY);
        fs::set_permissions(&node, permissions).map_err(file_error(&node))?;
    }
    let mut wrapped = Command::new("unshare");
    let script = format!("mount --bind \"$0\" {DRIVER} && exec \"$@\"");
    wrapped.args(["--mount", "sh", "-c", &script]).arg(&node);
    // What stands after it is the command proper, for whoever shows the line.
    wrapped.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => wrapped.env(name, value),
            None => wrapped.env_remove(name),
        };
    }
    Ok(wrapped)
}
