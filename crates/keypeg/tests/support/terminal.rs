//! A terminal for a command, as a pair of pseudoterminals.
//!
//! It keeps all that the command wrote. It is not the controlling terminal, so no signal arrives by
//! a key: a command that reads keys gets each of them.

use super::{eventually, pause};
use rustix::fs::{Mode, OFlags, fcntl_setfl, open};
use rustix::io::{Errno, read, write};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Termios, Winsize, tcgetattr, tcsetwinsize};
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};
use std::time::Duration;

pub(crate) struct Terminal {
    master: OwnedFd,
    device: OwnedFd,
    text: String,
}

impl Terminal {
    pub(crate) fn new(columns: u16, rows: u16) -> Self {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let name = ptsname(&master, Vec::new()).unwrap();
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let device = open(name, flags, Mode::empty()).unwrap();
        fcntl_setfl(&master, OFlags::NONBLOCK).unwrap();
        let terminal = Self { master, device, text: String::new() };
        terminal.resize(columns, rows);
        terminal
    }

    pub(crate) fn resize(&self, columns: u16, rows: u16) {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&self.master, size).unwrap();
    }

    /// Returns the terminal as a stream of a command.
    pub(crate) fn stream(&self) -> Stdio {
        self.device.try_clone().unwrap().into()
    }

    /// Makes it all three streams of a command.
    pub(crate) fn attach<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        command.stdin(self.stream()).stdout(self.stream()).stderr(self.stream())
    }

    /// Presses keys.
    pub(crate) fn press(&self, keys: &[u8]) {
        assert_eq!(write(&self.master, keys).unwrap(), keys.len());
    }

    /// Returns all that was written so far.
    pub(crate) fn text(&mut self) -> &str {
        let mut buffer = [0; 16_384];
        loop {
            match read(&self.master, &mut buffer) {
                Ok(0) | Err(Errno::AGAIN | Errno::IO) => return &self.text,
                Ok(len) => self.text.push_str(&String::from_utf8_lossy(&buffer[..len])),
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// Waits until a part of the text, from byte `from` on, is what `is_it` looks for.
    pub(crate) fn wait(&mut self, from: usize, is_it: impl Fn(&str) -> bool) {
        eventually("the terminal shows it", || {
            pause(Duration::from_millis(5));
            let text = self.text();
            is_it(text.get(from..).unwrap_or_default()).then_some(())
        });
    }

    /// Returns the settings of the terminal, which a command must restore.
    pub(crate) fn settings(&self) -> Termios {
        tcgetattr(&self.device).unwrap()
    }
}
