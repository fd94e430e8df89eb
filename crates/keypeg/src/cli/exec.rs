//! `keypeg exec`: runs a command under a lease.
//!
//! Neither the command nor a process that it started outlives the lease. When the lease ends, by the
//! pool's maximum hold, by a force-release or because the server does not answer for too long, all
//! of them are ended, before another client can get the key where the end is known beforehand.

mod job;
mod launcher;
mod options;
mod processes;
mod secrets;
mod signals;
mod supervision;
mod terminal;
mod watchdog;

pub use launcher::LauncherArgs;
pub use options::ExecArgs;
pub use watchdog::WatchdogArgs;

use crate::duration;
use crate::failure::{Failure, exit};
use crate::variables;
use job::Job;
use keypeg_client::{
    Client, ClientSource, Code, Error, GuardOptions, LeaseEnd, LeaseGuard, Pool, ReleaseRequest,
};
use rustix::process::Signal;
use signals::Signals;
use std::time::Duration;
use supervision::{Outcome, Supervision};
use terminal::print_message;
use tokio::time::{Instant, sleep, timeout_at};
use watchdog::Watchdog;

/// The time for which a release is repeated.
const RELEASE_PATIENCE: Duration = Duration::from_secs(10);
/// The pause between two attempts to release.
const RELEASE_PAUSE: Duration = Duration::from_millis(250);
/// The range of the pause after a failed keep-alive.
const KEEP_ALIVE_RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(10));

/// Runs the command with a key, and returns the command's exit code.
pub(super) async fn run(args: ExecArgs) -> Result<u8, Failure> {
    if let Some(code) = args.ambiguous_code() {
        let message = format!(
            "exit code {code} is given twice: use --rest-on or --quarantine-on once for each code"
        );
        return Err(Failure::new(exit::USAGE, message));
    }
    let mut signals = Signals::new().map_err(|error| handler_failure(&error))?;
    let source = args.server.source()?;
    let (pool, mut guard) = tokio::select! {
        acquired = acquire(&args, &source) => acquired?,
        // No command runs yet that could receive the signal.
        signal = signals.next_signal() => {
            return Ok(u8::try_from(128 + signal.as_raw()).unwrap_or(exit::SOFTWARE));
        }
    };
    let interval = pool.keepalive_every_seconds.map(|every| Duration::from_millis(every.ms));
    if !args.server.output.quiet {
        let max_hold = pool.max_hold_seconds.unwrap_or(pool.lease_ttl_seconds);
        print_message(&format!(
            "a lease of this pool lasts {} at most; a command that runs longer is ended: {}",
            duration::shown(Duration::from_millis(max_hold.ms)),
            allow_more(&args.server.pool)
        ));
    }
    let outcome = match start(&args, &guard, &mut signals).await {
        Ok((job, watchdog)) => {
            let key_gone = keep_alive(&source, &guard, interval);
            let grace = Duration::from_millis(args.grace.ms());
            Supervision::new(job, watchdog, grace, args.server.output.quiet)
                .run(&mut signals, &guard, key_gone)
                .await
        }
        Err(failure) => {
            let _ = release(&mut guard, &ReleaseRequest::default()).await;
            return Err(failure);
        }
    };
    finish(&args, &mut guard, outcome).await
}

/// Releases the key, and returns the exit code for the outcome of the command.
async fn finish(args: &ExecArgs, guard: &mut LeaseGuard, outcome: Outcome) -> Result<u8, Failure> {
    match outcome {
        Outcome::Ended { code } => match release(guard, &args.release_for(code)).await {
            None => Ok(code),
            Some(cause) => {
                let message =
                    format!("the lease had ended before the command ended with {code}: {cause}");
                Err(Failure::new(exit::TEMPORARY, message))
            }
        },
        Outcome::LeaseEnded(cause) => {
            // The lease may still run for the moment in which it was no longer safe to use.
            let _ = release(guard, &ReleaseRequest::default()).await;
            let is_max_hold = cause == LeaseEnd::MaxHold;
            let step = if is_max_hold {
                format!(": {}", allow_more(&args.server.pool))
            } else {
                String::new()
            };
            let message = format!("the lease has ended before the command: {cause}{step}");
            Err(Failure::new(exit::TEMPORARY, message))
        }
        Outcome::Stopped => {
            let _ = release(guard, &ReleaseRequest::default()).await;
            let message = "the lease has ended before the command: keypeg exec was stopped and \
                           could not use its renewal";
            Err(Failure::new(exit::TEMPORARY, message))
        }
        Outcome::Stuck(processes) => {
            let message = format!(
                "{processes} of the command cannot be ended and may still use the key: the lease \
                 is not released, it will expire"
            );
            guard.leave_to_expire();
            Err(Failure::new(exit::OS, message))
        }
    }
}

/// Returns the command that allows longer leases in a pool.
fn allow_more(pool: &str) -> String {
    format!("\"keypeg pool set {pool} --max-hold DURATION\" allows more")
}

/// Acquires a key. The policy of the pool is read first, because that can fail without a lease; a
/// server that restarts is waited for by the acquire.
async fn acquire(args: &ExecArgs, source: &ClientSource) -> Result<(Pool, LeaseGuard), Failure> {
    let pool = &args.server.pool;
    let early = match source.client().pool(pool).await {
        Ok(info) => Some(info),
        Err(Error::Unreachable(_)) if args.lease.wait.is_some() => None,
        Err(error) if args.lease.wait.is_some() && is_refused_for_now(&error) => None,
        Err(error) => return Err(error.into()),
    };
    let mut report = |message: &str| {
        if !args.server.output.quiet {
            print_message(message);
        }
    };
    let granted = args.lease.acquire(source, pool, &mut report).await?;
    let options = GuardOptions { ttl_seconds: args.lease.ttl_seconds(), follow_events: true };
    let mut guard = LeaseGuard::new(source.clone(), granted, &options);
    if let Some(info) = early {
        return Ok((info, guard));
    }
    match source.client().pool(pool).await {
        Ok(info) => Ok((info, guard)),
        Err(error) => {
            let _ = release(&mut guard, &ReleaseRequest::default()).await;
            Err(error.into())
        }
    }
}

fn is_refused_for_now(error: &Error) -> bool {
    error.problem().is_some_and(|problem| matches!(problem.status, 401 | 429 | 503))
        || error.is_proxy_failure()
}

/// Starts the command, once its watchdog knows the end of the lease.
async fn start(
    args: &ExecArgs,
    guard: &LeaseGuard,
    signals: &mut Signals,
) -> Result<(Job, Watchdog), Failure> {
    signals.control_job().map_err(|error| handler_failure(&error))?;
    let grant = guard.grant();
    refuse_nul(&grant.key.0, &grant.key_id)?;
    let mut given = vec![
        (&*args.variable, grant.key.0.clone()),
        (variables::KEY_ID, grant.key_id.clone()),
        (variables::FENCING_TOKEN, grant.fencing_token.to_string()),
    ];
    if args.pass_lease_id {
        given.push((variables::LEASE_ID, grant.id.clone()));
    }
    let mut job = Job::start(&args.command, &given, &secrets::NOT_FOR_COMMANDS)?;
    let failed = |error: std::io::Error| {
        Failure::new(exit::OS, format!("cannot start the watchdog of the command: {error}"))
    };
    let mut watchdog = Watchdog::start(job.group(), Duration::from_millis(args.grace.ms()), grant)
        .map_err(failed)?;
    watchdog.extend(guard.valid_until().map_or(Duration::ZERO, |end| end - Instant::now()));
    let ready = tokio::select! {
        ready = watchdog.ready() => ready.map_err(failed),
        cause = guard.ended() => {
            let message = format!("the lease has ended before the command began: {cause}");
            Err(Failure::new(exit::TEMPORARY, message))
        }
    };
    if let Err(failure) = ready {
        job.signal_all(Signal::KILL, None);
        return Err(failure);
    }
    job.proceed();
    Ok((job, watchdog))
}

/// The HTTP API takes such a value, but no variable can have it.
fn refuse_nul(value: &str, key_id: &str) -> Result<(), Failure> {
    if !value.contains('\0') {
        return Ok(());
    }
    let message = format!(
        "the value of the key {key_id} has a NUL character, which no environment variable can have: \
         \"keypeg quarantine {key_id}\" takes the key out of rotation"
    );
    Err(Failure::new(exit::DATA, message))
}

/// Keeps the key alive; returns when the key or its pool no longer exists.
async fn keep_alive(
    source: &ClientSource,
    guard: &LeaseGuard,
    interval: Option<Duration>,
) -> LeaseEnd {
    let Some(interval) = interval else { return std::future::pending().await };
    let grant = guard.grant();
    let mut retry = KEEP_ALIVE_RETRY.0;
    loop {
        let client: Client = source.client();
        let pause = match client.keep_alive(&grant.pool, &grant.key_id).await {
            Ok(_) => {
                retry = KEEP_ALIVE_RETRY.0;
                interval
            }
            Err(error) => match code(&error) {
                Some(Code::UnknownKey) => return LeaseEnd::KeyDeleted,
                Some(Code::UnknownPool) => return LeaseEnd::PoolDeleted,
                refused => {
                    let is_new = refused == Some(Code::Unauthorized) && source.refresh(&client);
                    let max = (interval / 4).clamp(KEEP_ALIVE_RETRY.0, KEEP_ALIVE_RETRY.1);
                    let pause = if is_new { Duration::ZERO } else { retry.min(max) };
                    retry = (retry * 2).min(max);
                    pause
                }
            },
        };
        sleep(pause).await;
    }
}

/// Releases the lease, and repeats that while no answer arrives or the server refuses for now.
/// Returns why the lease had ended before, if it had.
async fn release(guard: &mut LeaseGuard, request: &ReleaseRequest) -> Option<LeaseEnd> {
    let Some(end) = guard.valid_until() else { return Some(guard.ended().await) };
    let deadline = end.min(Instant::now() + RELEASE_PATIENCE);
    let mut may_be_released = false;
    loop {
        let words = match timeout_at(deadline, guard.release_with(request)).await {
            Ok(Ok(())) => return None,
            Ok(Err(error)) => {
                if let Some(cause) = LeaseEnd::of_refusal(&error) {
                    // A release whose answer was lost can have ended the lease.
                    let is_own = may_be_released && cause == LeaseEnd::Released;
                    return (!is_own).then_some(cause);
                }
                may_be_released |= error.problem().is_none();
                error.to_string()
            }
            Err(_) => "the server did not answer".to_owned(),
        };
        if Instant::now() + RELEASE_PAUSE >= deadline {
            print_message(&format!("cannot release the key: {words}; its lease will expire"));
            guard.leave_to_expire();
            return None;
        }
        sleep(RELEASE_PAUSE).await;
    }
}

fn code(error: &Error) -> Option<Code> {
    error.problem().map(|problem| problem.code)
}

fn handler_failure(error: &std::io::Error) -> Failure {
    Failure::new(exit::OS, format!("cannot install signal handlers: {error}"))
}
