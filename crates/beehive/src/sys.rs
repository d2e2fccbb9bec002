//! The heap of a long-running program: two settings of the C library, and the only code here that the compiler does not check.
//!
//! glibc has an arena for each thread and keeps what was freed. After a burst half of a small program's memory would be holes.
#![allow(unsafe_code, reason = "calls of the C library that take and return plain numbers")]

use std::time::Duration;

/// How often freed memory goes back to the system. Where nothing was freed it costs some microseconds.
const GIVE_BACK: Duration = Duration::from_secs(15);

/// Has no more than two arenas from now on. To be called before threads start.
pub fn limit_arenas() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt takes two numbers and may be called at any time. Whether it took them does not matter.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 2);
    }
}

/// Gives freed memory back to the system, again and again.
pub async fn keep_small() -> ! {
    loop {
        tokio::time::sleep(GIVE_BACK).await;
        #[cfg(target_env = "gnu")]
        // SAFETY: malloc_trim takes a number, locks what it touches, and moves nothing that is in use.
        unsafe {
            libc::malloc_trim(0);
        }
    }
}
