//! The files of the page, embedded, and the policy that they are served under.

use axum::{
    Router,
    http::{HeaderName, HeaderValue, header},
    response::{IntoResponse, Response},
    routing::get,
};

/// Nothing from elsewhere, nothing inline, no frame around it.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
                      require-trusted-types-for 'script'; trusted-types 'none'";

const HEADERS: [(HeaderName, HeaderValue); 7] = [
    (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY)),
    (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    (header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY")),
    (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
    (HeaderName::from_static("cross-origin-opener-policy"), HeaderValue::from_static("same-origin")),
    (HeaderName::from_static("cross-origin-resource-policy"), HeaderValue::from_static("same-origin")),
    // The files change with the release, and a page of one with the script of another is broken.
    (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
];

struct Asset {
    path: &'static str,
    media_type: &'static str,
    content: &'static str,
}

const ASSETS: [Asset; 7] = [
    Asset { path: "/", media_type: "text/html; charset=utf-8", content: include_str!("static/index.html") },
    Asset {
        path: "/label",
        media_type: "text/html; charset=utf-8",
        content: include_str!("static/label.html"),
    },
    Asset { path: "/assets/base.css", media_type: "text/css; charset=utf-8", content: crate::report::STYLE },
    Asset {
        path: "/assets/page.css",
        media_type: "text/css; charset=utf-8",
        content: include_str!("static/page.css"),
    },
    Asset {
        path: "/assets/common.js",
        media_type: "text/javascript; charset=utf-8",
        content: include_str!("static/common.js"),
    },
    Asset {
        path: "/assets/page.js",
        media_type: "text/javascript; charset=utf-8",
        content: include_str!("static/page.js"),
    },
    Asset {
        path: "/assets/label.js",
        media_type: "text/javascript; charset=utf-8",
        content: include_str!("static/label.js"),
    },
];

/// A route for each file.
pub fn routes<S: Clone + Send + Sync + 'static>() -> Router<S> {
    ASSETS.iter().fold(Router::new(), |router, asset| router.route(asset.path, get(async || served(asset))))
}

fn served(asset: &Asset) -> Response {
    let mut response = asset.content.into_response();
    let headers = response.headers_mut();
    for (name, value) in HEADERS {
        headers.insert(name, value);
    }
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(asset.media_type));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_hold_nothing_that_their_policy_forbids() {
        for Asset { path, content, .. } in ASSETS {
            for forbidden in
                ["http://", "https://", "style=\"", "<style", "onclick=", "onload=", "innerHTML", "eval("]
            {
                let allowed = forbidden.starts_with("http") && content.contains("http://www.w3.org/2000/svg");
                assert!(allowed || !content.contains(forbidden), "{path} has {forbidden}");
            }
        }
    }

    #[test]
    fn every_file_that_a_page_names_is_served() {
        for Asset { path, content, media_type } in ASSETS {
            if !media_type.starts_with("text/html") {
                continue;
            }
            let named: Vec<&str> = content.split('"').filter(|text| text.starts_with("assets/")).collect();
            assert!(named.len() >= 3, "{path}: {named:?}");
            for name in named {
                let served = ASSETS.iter().any(|asset| asset.path == format!("/{name}"));
                assert!(served, "{path} names {name}");
            }
        }
    }
}
