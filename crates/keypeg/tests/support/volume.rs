//! A small ext4 file system on a loop device, whose power can be cut.
//!
//! The cut is `EXT4_IOC_SHUTDOWN` without flushing the log: from then on nothing reaches the image
//! file, and data that was written but not synced is not on it. This needs root and loop devices;
//! where they are missing, creating a volume returns the reason.

use super::{TempDir, eventually};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Cuts the power of the file system that a directory is on. Before that, where `pages` is not 0,
/// it makes that many pages of each file durable, chosen at random near the end of the written
/// data: a disk may write pages in any order.
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

/// Drops the kernel's page cache of the journal's files. It caches them in folios of up to 1 MiB,
/// which become durable as a whole; read again, the folios are small, and a batch can be torn.
const DROP_CACHE: &str = r#"
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
    /// Creates a volume of `size` MiB and mounts it; returns why it cannot.
    pub(crate) fn new(size: u32) -> Result<Self, String> {
        let mut volume = Self { dir: TempDir::new(), mounted: false };
        // In memory: a cut loses data above the image file, so that file need not be on a disk.
        run("mount", &["-t", "tmpfs", "-o", "size=1G", "tmpfs", &text(volume.dir.path())])?;
        std::fs::create_dir(volume.path()).map_err(|error| error.to_string())?;
        run("truncate", &["-s", &format!("{size}M"), &text(&volume.image())])?;
        run("mkfs.ext4", &["-q", "-F", &text(&volume.image())])?;
        volume.mount()?;
        Ok(volume)
    }

    /// Returns the mount point.
    pub(crate) fn path(&self) -> PathBuf {
        self.dir.path().join("mnt")
    }

    fn image(&self) -> PathBuf {
        self.dir.path().join("image")
    }

    /// Mounts it: the kernel replays the file system's own journal, as after a power cut.
    pub(crate) fn mount(&mut self) -> Result<(), String> {
        run(
            "mount",
            &["-o", "loop,commit=60,errors=remount-ro", &text(&self.image()), &text(&self.path())],
        )?;
        self.mounted = true;
        Ok(())
    }

    /// Drops the page cache so that a batch can be torn, see [`DROP_CACHE`].
    pub(crate) fn drop_cache(&self) {
        run("perl", &["-e", DROP_CACHE, &text(&self.path())]).expect("drops the cache");
    }

    /// Cuts the power, see [`CUT`].
    pub(crate) fn cut(&self, pages: u64, seed: u64) {
        let (pages, seed) = (pages.to_string(), seed.to_string());
        run("perl", &["-e", CUT, &text(&self.path()), &pages, &seed]).expect("cuts the power");
    }

    /// Stops the image file from growing: the file system accepts writes to new blocks and cannot
    /// write them back.
    pub(crate) fn stop_growth(&self) {
        run("sync", &["-f", &text(&self.path())]).expect("syncs");
        // A tmpfs cannot shrink below its contents, and the image grows meanwhile.
        eventually("the image cannot grow", || {
            let used = std::fs::metadata(self.image()).expect("an image").blocks() * 512;
            self.resize(used + (1 << 20)).ok()
        });
    }

    /// Lets the image file grow again.
    pub(crate) fn allow_growth(&self) {
        self.resize(1 << 30).expect("remounts");
    }

    fn resize(&self, bytes: u64) -> Result<(), String> {
        let size = format!("remount,size={bytes}");
        run("mount", &["-o", &size, &text(self.dir.path())])
    }

    /// Makes the kernel treat the file system as damaged, which makes it read-only.
    pub(crate) fn make_read_only(&self) {
        let find = Command::new("findmnt").args(["-no", "SOURCE"]).arg(self.path()).output();
        let device = String::from_utf8(find.expect("findmnt").stdout).expect("a path");
        let name = device.trim().trim_start_matches("/dev/");
        std::fs::write(format!("/sys/fs/ext4/{name}/trigger_fs_error"), "test").expect("triggers");
    }

    /// Unmounts it as soon as no process uses it, and waits until the kernel has dropped the file
    /// system. A mount namespace that another test has made meanwhile keeps a copy of the mount; a
    /// mount would then return the old file system, still without power or read-only.
    pub(crate) fn unmount(&mut self) {
        eventually("unmounted", || run("umount", &[&text(&self.path())]).ok());
        self.mounted = false;
        eventually("no loop device has the image", || (!self.is_attached()).then_some(()));
    }

    /// Returns whether a loop device has the image.
    fn is_attached(&self) -> bool {
        let image = self.image().canonicalize().expect("an image");
        let devices = std::fs::read_dir("/sys/block").expect("block devices").flatten();
        let files = devices.map(|device| device.path().join("loop/backing_file"));
        files.flat_map(std::fs::read_to_string).any(|file| Path::new(file.trim()) == image)
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
    path.to_str().expect("a path in UTF-8").to_owned()
}

/// Runs a program; the error is its stderr.
pub(crate) fn run(program: &str, args: &[&str]) -> Result<(), String> {
    let output = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("{program}: {error}"))?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    output.status.success().then_some(()).ok_or_else(|| format!("{program}: {}", stderr.trim_end()))
}
