//! A small ext4 of a test's own, on a loop device, whose power can be cut.
//!
//! The cut is `EXT4_IOC_SHUTDOWN` without flushing the log: from then on nothing reaches the file
//! that is the disk, and what was written and not synced is not on it. Needs root and loop devices;
//! where they are not to be had, making one tells why.

use super::{TempDir, eventually};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Cuts the power of the file system that a directory is on. Before that, where `pages` is not 0, it
/// makes so many pages of its files durable, drawn at random near the ends of what is written:
/// a disk may write what it likes first.
const CUT: &str = r#"
my ($dir, $pages, $seed) = @ARGV;
srand($seed);
if ($pages) {
    my @files = sort grep { !/\.new$/ } glob("$dir/data/journal-*");
    for my $name (@files) {
        open(my $file, "<", $name) or next;
        my $end = 0;
        for (my $at = 0; $at < -s $name; $at += 4096) {
            seek($file, $at, 0); read($file, my $page, 4096);
            if ($page =~ /[^\0]/) { $end = $at } elsif ($at > $end + 65536) { last }
        }
        for (1 .. $pages) {
            my $at = $end - 4096 * int(rand(12));
            syscall(277, fileno($file), $at, 4096, 7) if $at >= 0;
        }
    }
}
sysopen(my $here, $dir, 0) or die "open: $!";
my $flags = pack("L", 2);
ioctl($here, 0x8004587d, $flags) or die "ioctl: $!";
"#;

/// Drops what the kernel keeps in memory of the journal's files: it holds them in pieces of up to
/// 1 MiB, which become durable as a whole. Read in anew they are small, and a batch can be torn.
const FORGET: &str = r#"
for my $name (glob("$ARGV[0]/data/journal-*")) {
    open(my $file, "<", $name) or next;
    syscall(221, fileno($file), 0, 0, 4) == 0 or die "fadvise64: $!";
}
"#;

/// An ext4 on a loop device, mounted or not.
pub(crate) struct Volume {
    dir: TempDir,
    mounted: bool,
}

impl Volume {
    /// Makes one of so many MiB and mounts it; tells why it cannot.
    pub(crate) fn new(size: u32) -> Result<Self, String> {
        let mut volume = Self { dir: TempDir::new(), mounted: false };
        // In memory: what is lost is lost above the file, so the file need not be on a disk.
        run("mount", &["-t", "tmpfs", "-o", "size=1G", "tmpfs", &text(volume.dir.path())])?;
        std::fs::create_dir(volume.path()).map_err(|error| error.to_string())?;
        run("truncate", &["-s", &format!("{size}M"), &text(&volume.image())])?;
        run("mkfs.ext4", &["-q", "-F", &text(&volume.image())])?;
        volume.mount()?;
        Ok(volume)
    }

    /// Where it is mounted.
    pub(crate) fn path(&self) -> PathBuf {
        self.dir.path().join("mnt")
    }

    fn image(&self) -> PathBuf {
        self.dir.path().join("image")
    }

    /// Mounts it: the kernel plays the file system's own journal back, as after a power cut.
    pub(crate) fn mount(&mut self) -> Result<(), String> {
        run(
            "mount",
            &["-o", "loop,commit=60,errors=remount-ro", &text(&self.image()), &text(&self.path())],
        )?;
        self.mounted = true;
        Ok(())
    }

    /// Makes torn batches possible, see [`FORGET`].
    pub(crate) fn forget(&self) {
        run("perl", &["-e", FORGET, &text(&self.path())]).expect("forgets");
    }

    /// Cuts the power, see [`CUT`].
    pub(crate) fn cut(&self, pages: u64, seed: u64) {
        let (pages, seed) = (pages.to_string(), seed.to_string());
        run("perl", &["-e", CUT, &text(&self.path()), &pages, &seed]).expect("cuts");
    }

    /// Lets the file that is the disk grow no more: what is written to new places is taken and cannot
    /// be kept.
    pub(crate) fn starve(&self) {
        run("sync", &["-f", &text(&self.path())]).expect("syncs");
        // A tmpfs takes no less than it holds, and the disk grows while it is looked at.
        eventually("starved", || {
            let used = std::fs::metadata(self.image()).expect("an image").blocks() * 512;
            self.resize(used + (1 << 20)).ok()
        });
    }

    /// Lets it grow again.
    pub(crate) fn feed(&self) {
        self.resize(1 << 30).expect("remounts");
    }

    fn resize(&self, bytes: u64) -> Result<(), String> {
        let size = format!("remount,size={bytes}");
        run("mount", &["-o", &size, &text(self.dir.path())])
    }

    /// Makes the kernel take the file system for damaged, which makes it read-only.
    pub(crate) fn make_read_only(&self) {
        let find = Command::new("findmnt").args(["-no", "SOURCE"]).arg(self.path()).output();
        let device = String::from_utf8(find.expect("findmnt").stdout).expect("a path");
        let name = device.trim().trim_start_matches("/dev/");
        std::fs::write(format!("/sys/fs/ext4/{name}/trigger_fs_error"), "test").expect("triggers");
    }

    /// Unmounts it, once nobody uses it any more.
    pub(crate) fn unmount(&mut self) {
        eventually("unmounted", || run("umount", &[&text(&self.path())]).ok());
        self.mounted = false;
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        if self.mounted {
            let _ = run("umount", &["-l", &text(&self.path())]);
        }
        let _ = run("umount", &["-l", &text(self.dir.path())]);
    }
}

fn text(path: &Path) -> String {
    path.to_str().expect("a name of our own").to_owned()
}

/// Runs a program; what it says is why it failed.
pub(crate) fn run(program: &str, args: &[&str]) -> Result<(), String> {
    let output = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("{program}: {error}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    output.status.success().then_some(()).ok_or_else(|| format!("{program}: {}", said.trim_end()))
}
