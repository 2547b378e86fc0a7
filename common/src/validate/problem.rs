//! The one way to say what is wrong with a request.

/// What is wrong with a request, as its caller is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// One sentence, naming the field and its limit.
    pub message: String,
    /// The field, header or parameter at fault.
    pub param: Option<String>,
    /// A stable word for programs.
    pub code: &'static str,
}

impl Problem {
    /// A problem of the request as a whole.
    pub fn new(code: &'static str, message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            param: None,
            code,
        }
    }

    /// A value that one field does not take.
    pub fn invalid(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new("invalid_value", message).at(param)
    }

    /// The same problem, blamed on one field, header or parameter.
    #[must_use]
    pub fn at(mut self, param: impl Into<String>) -> Self {
        self.param = Some(param.into());
        self
    }
}
