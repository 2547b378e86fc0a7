//! `claimcheck-worker run`: the worker process. Flags win over the environment.

use std::net::SocketAddr;

use claimcheck_common::config::{TelemetryConfig, load_dotenv};
use claimcheck_common::domain::{DeviceChoice, Dtype, ModelSource, Order};
use claimcheck_common::{shutdown, telemetry};
use clap::Args;

use crate::app::{Settings, WorkerApp};
use crate::roles::Role;

/// What the command line can say about a worker process.
#[derive(Debug, Clone, Args)]
pub(super) struct RunArgs {
    /// What this process does (all of it unless set).
    #[arg(long = "role", value_enum, value_delimiter = ',')]
    roles: Vec<Role>,
    /// A folder with Hugging Face files or a name on the hub, as [NAME=]SOURCE[@REVISION]; given again, one more
    /// [env: `CLAIMCHECK_MODEL`]
    #[arg(long = "model")]
    models: Vec<ModelSource>,
    /// The name of a single model [env: `CLAIMCHECK_MODEL_NAME`]
    #[arg(long)]
    model_name: Option<String>,
    /// The revision of a single hub model [env: `CLAIMCHECK_MODEL_REVISION`]
    #[arg(long)]
    model_revision: Option<String>,
    /// What weights are kept in: f32, bf16 or int8 [env: `CLAIMCHECK_DTYPE`]
    #[arg(long)]
    dtype: Option<Dtype>,
    /// Where to compute: auto, cpu, cuda, cuda:N or vulkan [env: `CLAIMCHECK_DEVICE`]
    #[arg(long)]
    device: Option<DeviceChoice>,
    /// How to add up: fixed, or fast, which lets a job's output depend on its company [env: `CLAIMCHECK_ORDER`]
    #[arg(long)]
    order: Option<Order>,
    /// Sequences of a model that are generated side by side [env: `CLAIMCHECK_SLOTS`]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    slots: Option<u16>,
    /// Most memory for keys and values of a model, in MiB [env: `CLAIMCHECK_KV_CACHE_MIB`]
    #[arg(long)]
    kv_cache_mib: Option<u32>,
    /// Most memory for all models together, in MiB; models without work are unloaded for others [env: `CLAIMCHECK_MODEL_MEMORY_MIB`]
    #[arg(long)]
    model_memory_mib: Option<u32>,
    /// Where health and metrics are served [env: `CLAIMCHECK_WORKER_HTTP_ADDR`]
    #[arg(long)]
    http_addr: Option<SocketAddr>,
}

impl RunArgs {
    fn over(self, mut settings: Settings) -> Settings {
        if !self.roles.is_empty() {
            settings.roles = self.roles;
        }
        let worker = &mut settings.worker;
        if !self.models.is_empty() {
            // Their names and revisions are not those of the models in the environment.
            (worker.models, worker.model_name, worker.model_revision) = (self.models, None, None);
        }
        worker.model_name = self.model_name.or(worker.model_name.take());
        worker.model_revision = self.model_revision.or(worker.model_revision.take());
        worker.dtype = self.dtype.unwrap_or(worker.dtype);
        worker.device = self.device.unwrap_or(worker.device);
        worker.order = self.order.unwrap_or(worker.order);
        worker.slots = self.slots.unwrap_or(worker.slots);
        worker.kv_cache_mib = self.kv_cache_mib.unwrap_or(worker.kv_cache_mib);
        worker.model_memory_mib = self.model_memory_mib.or(worker.model_memory_mib);
        worker.worker_http_addr = self.http_addr.unwrap_or(worker.worker_http_addr);
        settings
    }
}

/// Runs until SIGTERM or SIGINT.
pub(super) async fn run(args: RunArgs) -> anyhow::Result<()> {
    load_dotenv()?;
    telemetry::init(&TelemetryConfig::from_env()?);
    let settings = args.over(Settings::from_env()?);
    let stop = shutdown::on_signal()?;
    WorkerApp::build(settings).await?.run_until_stopped(stop).await?;
    Ok(())
}
