//! What every page is made of: its head with the policy, tiles, rejections, settings.

use crate::fault::ItemError;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use maud::{DOCTYPE, Markup, PreEscaped, Render, html};
use sha2::{Digest, Sha256};
use std::{
    io::{self, Write},
    time::Duration,
};
use time::{OffsetDateTime, macros::format_description};

/// Styles that all pages have in common; a page's own come behind them.
pub const STYLE: &str = include_str!("style.css");

/// The inline texts of a page, and what it is called.
pub struct Shell<'a> {
    pub title: &'a str,
    /// Beside what all pages have in common.
    pub style: &'a str,
    pub script: Option<&'a str>,
}

impl Shell<'_> {
    /// Writes the page around what `body` writes.
    pub fn write<W: Write>(
        &self,
        out: &mut W,
        body: impl FnOnce(&mut W) -> io::Result<()>,
    ) -> io::Result<()> {
        emit(out, DOCTYPE)?;
        out.write_all(b"<html lang=\"en\">")?;
        emit(out, self.head())?;
        out.write_all(b"<body>")?;
        body(out)?;
        if let Some(script) = self.script {
            emit(out, html! { script { (PreEscaped(script)) } })?;
        }
        out.write_all(b"</body></html>\n")
    }

    fn head(&self) -> Markup {
        let style = format!("{STYLE}{}", self.style);
        let script = self.script.map_or_else(|| "'none'".to_owned(), policy_hash);
        let policy = format!(
            "default-src 'none'; img-src data:; style-src {}; script-src {script}; base-uri 'none'; form-action 'none'",
            policy_hash(&style),
        );
        html! {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                meta http-equiv="Content-Security-Policy" content=(policy);
                meta name="referrer" content="no-referrer";
                title { (self.title) }
                style { (PreEscaped(style)) }
            }
        }
    }
}

/// The source expression of a content security policy that allows just this inline text.
fn policy_hash(text: &str) -> String {
    format!("'sha256-{}'", STANDARD.encode(Sha256::digest(text)))
}

pub fn emit(out: &mut impl Write, markup: impl Render) -> io::Result<()> {
    out.write_all(markup.render().0.as_bytes())
}

/// A number with its name.
pub fn tile(name: &str, value: &str, class: &str) -> Markup {
    html! { div class=(class) { dt { (name) } dd { (value) } } }
}

/// A line of the settings at a page's end.
pub fn setting(name: &str, value: impl Render) -> Markup {
    html! { div { dt { (name) } dd { (value) } } }
}

/// An image without a result.
pub struct Rejected<'a> {
    pub image: &'a str,
    /// A JPEG.
    pub thumbnail: Option<&'a [u8]>,
    pub error: &'a ItemError,
}

/// Why images have no result, and what to do about it.
pub fn rejections(heading: &str, rejected: &[Rejected<'_>]) -> Markup {
    html! {
        section aria-labelledby="rejected-heading" {
            div.section-head { h2 id="rejected-heading" { (heading) } }
            ul.rejected {
                @for Rejected { image, thumbnail, error } in rejected {
                    @let (reason, remedy) = reason_and_remedy(image, error);
                    li {
                        @if let Some(jpeg) = thumbnail {
                            img src=(data_address(jpeg)) alt="";
                        }
                        div {
                            p.name { (image) }
                            p.reason { (reason) }
                            @if let Some(remedy) = remedy { p.remedy { (remedy) } }
                        }
                        code { (error.code) }
                    }
                }
            }
        }
    }
}

/// The message without the image's name, split where the remedy begins.
fn reason_and_remedy<'a>(image: &str, error: &'a ItemError) -> (&'a str, Option<&'a str>) {
    let message = error.message.strip_prefix(image).and_then(|rest| rest.strip_prefix(": "));
    let message = message.unwrap_or(&error.message);
    match message.rsplit_once("; ") {
        Some((reason, remedy)) => (reason, Some(remedy)),
        None => (message, None),
    }
}

/// Who wrote the page, with a remark on what it shows.
pub fn written_by(remark: &str) -> Markup {
    html! { p { "Written by roc4mllm " (env!("CARGO_PKG_VERSION")) ". " (remark) } }
}

/// A JPEG as an address that holds it.
pub fn data_address(jpeg: &[u8]) -> String {
    format!("data:image/jpeg;base64,{}", STANDARD.encode(jpeg))
}

/// "1 image", "2 images", "3,000 images".
pub fn count(number: usize, noun: &str) -> String {
    format!("{} {noun}{}", grouped(number), if number == 1 { "" } else { "s" })
}

/// A number with a comma at every third digit.
pub fn grouped(number: usize) -> String {
    let digits = number.to_string();
    let parts: Vec<&str> =
        digits.as_bytes().rchunks(3).rev().filter_map(|part| std::str::from_utf8(part).ok()).collect();
    parts.join(",")
}

pub fn date(at: OffsetDateTime) -> String {
    let format = format_description!("[year]-[month]-[day] [hour]:[minute] UTC");
    // It fails for years that no clock shows, and the date is then left out.
    at.to_offset(time::UtcOffset::UTC).format(&format).unwrap_or_default()
}

pub fn duration(elapsed: Duration) -> String {
    match elapsed.as_secs_f64() {
        seconds @ ..60.0 => format!("{seconds:.1} s"),
        seconds @ 60.0..3600.0 => format!("{:.0} min {:02.0} s", (seconds / 60.0).floor(), seconds % 60.0),
        seconds => format!("{:.0} h {:02.0} min", (seconds / 3600.0).floor(), (seconds % 3600.0) / 60.0),
    }
}

/// A coordinate without digits that nobody sees.
pub fn short(value: f64) -> String {
    let text = format!("{value:.1}");
    match text.strip_suffix(".0") {
        Some("-0") => "0".to_owned(),
        Some(whole) => whole.to_owned(),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short_and_readable() {
        assert_eq!([0, 12, 999, 1_000, 1_234_567].map(grouped), ["0", "12", "999", "1,000", "1,234,567"]);
        assert_eq!((count(1, "photo"), count(3_000, "photo")), ("1 photo".into(), "3,000 photos".into()));
        assert_eq!([1.0, -0.01, 2.26, -3.5].map(short), ["1", "0", "2.3", "-3.5"]);
    }
}
