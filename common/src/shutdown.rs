//! Stopping: a token is passed into every loop, and the process's signals cancel it.

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// A token that SIGTERM or SIGINT cancels. A second signal ends the process at once.
pub fn on_signal() -> std::io::Result<CancellationToken> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let token = CancellationToken::new();
    let stop = token.clone();
    tokio::spawn(async move {
        for second in [false, true] {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            if second {
                tracing::warn!("stopped the hard way by a second signal");
                std::process::exit(130);
            }
            tracing::info!("stopping; a second signal stops at once");
            stop.cancel();
        }
    });
    Ok(token)
}

/// Tells of each SIGHUP: files are to be read again. Must be called within a runtime; without a call the signal ends the process.
pub fn on_hangup() -> std::io::Result<mpsc::Receiver<()>> {
    let mut hangup = signal(SignalKind::hangup())?;
    // One that waits stands for all that come meanwhile.
    let (tell, told) = mpsc::channel(1);
    tokio::spawn(async move {
        while hangup.recv().await.is_some() && !tell.is_closed() {
            let _one_waits_already = tell.try_send(());
        }
    });
    Ok(told)
}
