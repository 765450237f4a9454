//! Which model scores which object, and how one model takes the place of another under load.
//!
//! A [`ServedModel`] is one version with everything that belongs to it: preprocessing, slots of pixel
//! values, threads, and the child process for suspected images. [`Models`] knows the ones that are loaded
//! and what each is for. Whoever scores asks it for a model, an image at a time, and the model's version
//! goes into the image's id, look-up, row and output.
//!
//! * The **champion** scores whatever no other model does.
//! * A **canary** scores a [`Share`] of the keys instead, and publishes like a champion.
//! * A **shadow** scores a share of the live images after their scores are on their way, and publishes
//!   nothing: its [`Agreement`] with what was published is recorded.
//!
//! The [`Switcher`] follows the registry. A new version is fetched and verified, loaded on threads of its
//! own while the old one scores, warmed up, and scores the built-in picture; only then do new images go to
//! it. The old one answers the images that it has taken, sends those that still wait to the new one, and is
//! freed on the thread that it lived on. Whatever goes wrong on the way leaves the old one serving.

mod agreement;
pub mod metrics;
mod model;
mod models;
mod settings;
mod shadow;
mod share;
mod switch;
#[cfg(all(test, feature = "dev"))]
mod testing;

pub use agreement::Agreement;
pub use metrics::ServingMetrics;
pub use model::ServedModel;
pub use models::{Canary, Lineup, Lost, Models};
pub use settings::{ServingSettings, SwitchMode};
pub use shadow::{Shadow, ShadowMetrics, Ticket};
pub use share::{NoShare, Purpose, Share};
pub use switch::{Deployed, Duty, Loader, Releases, Switcher};
