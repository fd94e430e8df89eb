//! The terminal of `keypeg top`: taking it, drawing a frame, reading keys, and giving it back.
//!
//! The terminal is restored however the command ends, also by a panic. Knows nothing of what is
//! drawn.

use crate::output::cut;
use rustix::io::{Errno, read};
use rustix::process::{Signal, getpid, kill_process};
use rustix::stdio::stdin;
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use std::io::{self, Write};
use tokio::signal::unix::{self, SignalKind, signal};
use tokio::sync::mpsc;

/// Another buffer, so that the earlier text of the terminal stays; no cursor.
const ENTER: &str = "\x1b[?1049h\x1b[?25l";
const LEAVE: &str = "\x1b[0m\x1b[?25h\x1b[?1049l";
/// The size of a terminal that does not tell it.
const SIZE: Size = Size { width: 80, height: 24 };

/// The size of a terminal, in columns and lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Size {
    pub(super) width: usize,
    pub(super) height: usize,
}

/// How a line is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Style {
    Plain,
    Bold,
    /// Something that needs attention.
    Alert,
}

/// A line of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Line {
    pub(super) text: String,
    pub(super) style: Style,
}

/// What the user or the system wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Input {
    /// Scroll down by so many lines, or up if negative.
    Scroll(i64),
    Redraw,
    /// Stop until the shell continues the command.
    Suspend,
    /// End with this exit code.
    End {
        code: u8,
    },
}

/// The terminal while it is taken.
pub(super) struct Screen {
    keys: mpsc::Receiver<io::Result<Input>>,
    earlier: Termios,
    ends: [(unix::Signal, u8); 3],
    resized: unix::Signal,
    has_colour: bool,
}

impl Screen {
    /// Takes the terminal.
    pub(super) fn enter() -> io::Result<Self> {
        let earlier = tcgetattr(stdin())?;
        let end = |kind: SignalKind| -> io::Result<_> {
            Ok((signal(kind)?, u8::try_from(128 + kind.as_raw_value()).unwrap_or(128)))
        };
        let mut screen = Self {
            keys: read_keys()?,
            earlier,
            ends: [
                end(SignalKind::interrupt())?,
                end(SignalKind::terminate())?,
                end(SignalKind::hangup())?,
            ],
            resized: signal(SignalKind::window_change())?,
            has_colour: std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()),
        };
        screen.take()?;
        Ok(screen)
    }

    fn take(&mut self) -> io::Result<()> {
        let mut raw = self.earlier.clone();
        // Keys arrive at once and are not shown. Ctrl-C and Ctrl-Z arrive as keys, so that the
        // terminal is given back first.
        raw.local_modes.remove(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG);
        tcsetattr(stdin(), OptionalActions::Flush, &raw)?;
        print(ENTER)
    }

    fn give_back(&self) {
        let _ = print(LEAVE);
        let _ = tcsetattr(stdin(), OptionalActions::Flush, &self.earlier);
    }

    /// Gives the terminal back and stops this process; takes it again when a shell continues it.
    pub(super) fn suspend(&mut self) -> io::Result<()> {
        self.give_back();
        kill_process(getpid(), Signal::STOP)?;
        self.take()
    }

    /// Draws a frame of the present size.
    pub(super) fn draw(&self, frame: impl FnOnce(Size) -> Vec<Line>) -> io::Result<()> {
        let size = tcgetwinsize(stdin()).ok().filter(|it| it.ws_col > 0 && it.ws_row > 0);
        let size =
            size.map_or(SIZE, |it| Size { width: it.ws_col.into(), height: it.ws_row.into() });
        let mut lines = frame(size);
        lines.truncate(size.height);
        let mut text = String::from("\x1b[H");
        for (index, Line { text: line, style }) in lines.iter().enumerate() {
            if index > 0 {
                text.push_str("\r\n");
            }
            let style = match style {
                Style::Plain => "",
                Style::Alert if self.has_colour => "\x1b[1;31m",
                Style::Bold | Style::Alert => "\x1b[1m",
            };
            text.extend([style, &cut(line, size.width), "\x1b[0m\x1b[K"]);
        }
        text.push_str("\x1b[J");
        print(&text)
    }

    /// Waits for a key, a new size of the terminal, or a signal that ends the command. Cancel safe.
    pub(super) async fn next(&mut self) -> io::Result<Input> {
        let Self { keys, ends: [(interrupt, a), (terminate, b), (hangup, c)], resized, .. } = self;
        tokio::select! {
            _ = interrupt.recv() => Ok(Input::End { code: *a }),
            _ = terminate.recv() => Ok(Input::End { code: *b }),
            _ = hangup.recv() => Ok(Input::End { code: *c }),
            _ = resized.recv() => Ok(Input::Redraw),
            // The thread ends only with the terminal.
            input = keys.recv() => input.unwrap_or(Ok(Input::End { code: 0 })),
        }
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        self.give_back();
    }
}

/// Starts a thread that waits for keys: stdin must stay blocking, because the shell has the same
/// one. It ends with the process.
fn read_keys() -> io::Result<mpsc::Receiver<io::Result<Input>>> {
    let (sender, receiver) = mpsc::channel(16);
    let run = move || {
        let mut bytes = [0; 64];
        loop {
            let input = match read(stdin(), &mut bytes) {
                // The terminal is gone.
                Ok(0) | Err(Errno::IO) => return,
                Ok(len) => meaning(&bytes[..len]).map(Ok),
                Err(Errno::INTR) => None,
                Err(error) => Some(Err(error.into())),
            };
            if let Some(input) = input
                && sender.blocking_send(input).is_err()
            {
                return;
            }
        }
    };
    std::thread::Builder::new().name("keypeg-keys".into()).spawn(run)?;
    Ok(receiver)
}

/// Returns what the pressed keys mean; `None` for keys without a meaning. Of several, one that ends
/// the command counts, else the sum of all scrolling.
fn meaning(keys: &[u8]) -> Option<Input> {
    const PAGE: i64 = 20;
    let (mut rest, mut lines, mut is_redrawn) = (keys, 0, false);
    while let [first, after @ ..] = rest {
        rest = after;
        match first {
            // Ctrl-C and Ctrl-D.
            b'q' | b'Q' | 3 | 4 => return Some(Input::End { code: 0 }),
            // Ctrl-Z.
            26 => return Some(Input::Suspend),
            // Ctrl-L.
            12 => is_redrawn = true,
            b'j' => lines += 1,
            b'k' => lines -= 1,
            b' ' => lines += PAGE,
            b'g' => lines = i64::MIN / 2,
            27 => {
                let (scrolled, length) = match rest {
                    [b'[' | b'O', b'A', ..] => (-1, 2),
                    [b'[' | b'O', b'B', ..] => (1, 2),
                    [b'[' | b'O', b'H', ..] => (i64::MIN / 2, 2),
                    [b'[', b'5', b'~', ..] => (-PAGE, 3),
                    [b'[', b'6', b'~', ..] => (PAGE, 3),
                    _ => (0, 0),
                };
                lines = lines.saturating_add(scrolled);
                rest = &rest[length..];
            }
            _ => {}
        }
    }
    match (lines, is_redrawn) {
        (0, false) => None,
        (0, true) => Some(Input::Redraw),
        (lines, _) => Some(Input::Scroll(lines)),
    }
}

fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_end_suspend_and_scroll() {
        let end = Some(Input::End { code: 0 });
        for (keys, input) in [
            (&b"q"[..], end),
            (b"\x03", end),
            (b"\x04", end),
            (b"jjq", end),
            (b"\x1a", Some(Input::Suspend)),
            (b"j", Some(Input::Scroll(1))),
            (b"\x1b[B\x1b[B\x1bOA", Some(Input::Scroll(1))),
            (b"\x1b[6~", Some(Input::Scroll(20))),
            (b"\x1b[5~", Some(Input::Scroll(-20))),
            (b"\x0c", Some(Input::Redraw)),
            (b"\x1b", None),
            (b"\x1b[", None),
            (b"\x1b[99;5u", None),
            (b"xyz\xff\n", None),
            (b"", None),
        ] {
            assert_eq!(meaning(keys), input, "{keys:?}");
        }
        assert!(matches!(meaning(b"g"), Some(Input::Scroll(lines)) if lines < -1_000_000_000));
    }
}
