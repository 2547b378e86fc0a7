//! `POST /v1/tokenize`: what a text is to a model.

use axum::extract::State;
use claimcheck_common::tokenizer::Tokenizer;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::app::AppState;
use crate::docs::{BadBody, Trouble};
use crate::error::{ApiError, ErrorBody};
use crate::extract::{Caller, Json};
use crate::validate::text::Text;

/// Longer texts fit no model here.
const TEXT_MAX: usize = 100_000;
/// Shorter texts are encoded in place: handing them to another thread would cost more.
const SHORT_BYTES: usize = 512;

/// A text to be cut into tokens.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, expecting = "a JSON object")]
#[schema(example = json!({"prompt": "Once upon a time"}))]
pub struct Tokenize {
    /// A served model's name or alias; may be absent while exactly one model is served.
    #[schema(value_type = Option<String>, min_length = 1, max_length = 256)]
    pub model: Option<Text<1, 256>>,
    /// The text, of up to 100,000 characters.
    #[schema(value_type = String, max_length = 100_000)]
    pub prompt: Text<0, TEXT_MAX>,
    /// Whether to name the tokens, too.
    #[schema(default = false)]
    pub return_token_strs: Option<bool>,
}

/// A text in tokens.
#[derive(Debug, Serialize, ToSchema)]
pub struct TokensBody {
    /// Always `tokens`.
    pub object: &'static str,
    /// The model's name.
    pub model: String,
    /// How many tokens.
    pub count: usize,
    /// Most tokens of prompt and output together.
    pub max_model_len: u32,
    /// Their ids.
    pub tokens: Vec<u32>,
    /// Their texts; `bytes:\\xNN` where one is only part of a character. Null unless they were asked for.
    #[schema(required)]
    pub token_strs: Option<Vec<String>>,
}

/// Count and list a text's tokens
#[utoipa::path(post, path = "/v1/tokenize", tag = "Models", request_body = Tokenize, responses(
    (status = 200, body = TokensBody, description = "The tokens"),
    (status = 404, body = ErrorBody, description = "The model is not served (`model_not_found`)"),
    BadBody, Trouble,
))]
pub async fn tokenize(
    State(state): State<AppState>,
    caller: Caller,
    request: Json<Tokenize>,
) -> Result<axum::Json<TokensBody>, ApiError> {
    let Tokenize {
        model,
        prompt,
        return_token_strs,
    } = request.value;
    let name = model.as_ref().map(Text::as_str);
    let served = state.catalog.find(name, caller.notes.names()).await?;
    let tokenizer = state.catalog.tokenizer(&served).await?;
    let wants_names = return_token_strs == Some(true);
    let prompt = prompt.into_string();
    let (tokens, token_strs) = if prompt.len() <= SHORT_BYTES {
        encode(&tokenizer, &prompt, wants_names)?
    } else {
        let encoding = tokio::task::spawn_blocking(move || encode(&tokenizer, &prompt, wants_names));
        encoding.await.map_err(ApiError::internal)??
    };
    Ok(axum::Json(TokensBody {
        object: "tokens",
        model: served.model.name,
        count: tokens.len(),
        max_model_len: served.context_length,
        tokens,
        token_strs,
    }))
}

type Encoded = (Vec<u32>, Option<Vec<String>>);

fn encode(tokenizer: &Tokenizer, text: &str, wants_names: bool) -> Result<Encoded, ApiError> {
    let ids = tokenizer.encode(text).map_err(ApiError::internal)?;
    let names = wants_names.then(|| ids.iter().map(|id| tokenizer.token_name(*id)).collect());
    Ok((ids, names))
}
