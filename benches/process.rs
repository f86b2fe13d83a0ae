//! What the kernel knows of a process, and what the daemon says over HTTP.

use std::{fs, time::Duration};

/// User and system time of a process so far.
pub fn cpu(pid: u32) -> Duration {
    ticks(&pid.to_string(), &[11, 12])
}

/// User and system time of a process and its children, those that have ended included.
pub fn family_cpu(pid: u32) -> Duration {
    let of_all = |child: std::io::Result<fs::DirEntry>| {
        let name = child.ok()?.file_name().into_string().ok()?;
        let is_child = fields(&name).get(1) == Some(&u64::from(pid));
        is_child.then(|| ticks(&name, &[11, 12]))
    };
    let children: Duration = fs::read_dir("/proc").into_iter().flatten().filter_map(of_all).sum();
    children + ticks(&pid.to_string(), &[11, 12, 13, 14])
}

/// Fields of `/proc/PID/stat` behind the name; 0 for what is no number.
fn fields(pid: &str) -> Vec<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name in parentheses may hold blanks; the fields behind it do not.
    text.rsplit(')').next().unwrap_or_default().split_whitespace().map(|field| field.parse().unwrap_or(0)).collect()
}

fn ticks(pid: &str, at: &[usize]) -> Duration {
    let fields = fields(pid);
    let all: u64 = at.iter().filter_map(|at| fields.get(*at)).sum();
    // Linux counts in hundredths of a second whatever its own tick is.
    Duration::from_millis(all * 10)
}

/// A line of `/proc/PID/status` in KiB: `VmHWM` is the peak of resident memory, `VmRSS` what is resident now.
pub fn memory_kib(pid: u32, field: &str) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with(field)).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|value| value.parse().ok()).unwrap_or(0)
}

/// The version that the daemon prints.
pub fn version() -> String {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_headwater")).arg("--version").output().expect("headwater runs");
    String::from_utf8_lossy(&output.stdout).trim().trim_start_matches("headwater ").to_owned()
}

/// A JSON document from a server on loopback; none while it does not answer.
pub fn get(url: &str) -> Option<serde_json::Value> {
    let text = ureq::get(url).call().ok()?.body_mut().read_to_string().ok()?;
    serde_json::from_str(&text).ok()
}
