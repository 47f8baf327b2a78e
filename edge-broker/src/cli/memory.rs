//! What the process takes of the machine's memory beside what it allocates: large pages, and the pages of its own program.

use super::CliError;

/// Lets the system give memory in large pages, or not. Whether it may is known once the configuration is read, and then the allocator
/// has its first pages already, large ones among them. So where it may not, the process begins anew with the switch set, which holds beyond that:
/// it keeps its process id and whatever it was given. A system that has no large pages, or no such switch, changes nothing.
///
/// # Errors
/// If the process cannot begin anew.
#[cfg(target_os = "linux")]
pub(super) fn huge_pages(allowed: bool) -> Result<(), CliError> {
    use std::os::unix::process::CommandExt as _;

    let Ok(are_off) = rustix::thread::transparent_huge_pages_are_disabled() else { return Ok(()) };
    if are_off != allowed || rustix::thread::disable_transparent_huge_pages(!allowed).is_err() || allowed {
        return Ok(());
    }
    let failed = |e| CliError::failed(format!("cannot begin anew without large pages (node.huge_pages): {e}"));
    let program = std::env::current_exe().map_err(failed)?;
    let mut arguments = std::env::args_os();
    let name = arguments.next().unwrap_or_else(|| program.clone().into_os_string());
    Err(failed(std::process::Command::new(program).arg0(name).args(arguments).exec()))
}

/// See above: there is no such switch here.
#[cfg(not(target_os = "linux"))]
pub(super) fn huge_pages(_allowed: bool) -> Result<(), CliError> {
    Ok(())
}

/// Gives back the pages of the program that only starting needed, most of it: they are read from the file again when they are
/// needed.
#[cfg(target_os = "linux")]
pub(super) fn give_back_program() {
    let (Ok(maps), Ok(program)) = (std::fs::read_to_string("/proc/self/maps"), std::env::current_exe()) else { return };
    let Some(program) = program.to_str() else { return };
    for (begin, end) in code_of(&maps, program) {
        let bytes = end.saturating_sub(begin);
        // SAFETY: this is a private mapping of a file that is only read and executed. Nothing was ever written to it, so each of its pages is
        // the file's, and is mapped again from there at the next touch.
        #[allow(unsafe_code, reason = "advice to the kernel; see above")]
        let _ = unsafe { rustix::mm::madvise(begin as *mut _, bytes, rustix::mm::Advice::LinuxDontNeed) };
    }
}

/// See above: this is done where it can be said which pages those are.
#[cfg(not(target_os = "linux"))]
pub(super) fn give_back_program() {}

/// Where the program's code is mapped, as `/proc/self/maps` tells: what is executed, not written, and comes from its file.
#[cfg(any(target_os = "linux", test))]
fn code_of(maps: &str, program: &str) -> Vec<(usize, usize)> {
    let code = |line: &str| {
        let mut fields = line.split_ascii_whitespace();
        let (range, rights) = (fields.next()?, fields.next()?);
        let path = fields.nth(3)?;
        let (begin, end) = range.split_once('-')?;
        let is_code = rights == "r-xp" && path == program;
        is_code.then_some((usize::from_str_radix(begin, 16).ok()?, usize::from_str_radix(end, 16).ok()?))
    };
    maps.lines().filter_map(code).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_program_s_code_is_given_back() {
        let maps = "00400000-00401000 r--p 00000000 08:01 7 /usr/bin/seaway\n\
            00401000-00403000 r-xp 00001000 08:01 7 /usr/bin/seaway\n\
            00403000-00404000 rw-p 00003000 08:01 7 /usr/bin/seaway\n\
            00500000-00501000 rwxp 00000000 00:00 0\n\
            7f0000000000-7f0000001000 r-xp 00000000 08:01 9 /lib/libc.so.6\n\
            broken";
        assert_eq!(code_of(maps, "/usr/bin/seaway"), [(0x0040_1000, 0x0040_3000)]);
    }
}
