//! The form of what is specific to each operation: description, body, parameters, answers, problems.
//!
//! Knows no operation.

use keypeg_client::Code;
use serde_json::{Value, json};

/// The part of the document that is specific to one operation.
pub(super) struct Call {
    /// What the summary does not say.
    pub(super) description: &'static str,
    pub(super) body: RequestBody,
    /// Parameters in the query and in headers.
    pub(super) parameters: Vec<Value>,
    /// The answers on success, and the errors that have a text of their own.
    pub(super) answers: Vec<Answer>,
    /// The problem codes that not every route has.
    pub(super) problems: &'static [Code],
}

/// Which body an operation reads: schema and named examples.
pub(super) enum RequestBody {
    /// No body: the server ignores what is sent.
    None,
    /// An object that may be left out.
    Optional(&'static str, Vec<(&'static str, Value)>),
    /// An object.
    Required(&'static str, Vec<(&'static str, Value)>),
}

/// One answer of an operation.
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) text: &'static str,
    /// Content type, schema and example.
    pub(super) content: Option<(&'static str, Value, Value)>,
}

impl Call {
    pub(super) fn new(
        description: &'static str,
        answers: Vec<Answer>,
        problems: &'static [Code],
    ) -> Self {
        Self { description, body: RequestBody::None, parameters: Vec::new(), answers, problems }
    }

    /// Sets the body, which every request has.
    pub(super) fn with_required_body(
        mut self,
        schema: &'static str,
        examples: Vec<(&'static str, Value)>,
    ) -> Self {
        self.body = RequestBody::Required(schema, examples);
        self
    }

    pub(super) fn with_optional_body(
        mut self,
        schema: &'static str,
        examples: Vec<(&'static str, Value)>,
    ) -> Self {
        self.body = RequestBody::Optional(schema, examples);
        self
    }

    pub(super) fn with_parameters(mut self, parameters: Vec<Value>) -> Self {
        self.parameters = parameters;
        self
    }
}

pub(super) fn referenced(status: u16, text: &'static str, schema: &str, example: Value) -> Answer {
    let schema = json!({ "$ref": format!("#/components/schemas/{schema}") });
    Answer { status, text, content: Some(("application/json", schema, example)) }
}

/// Returns an answer with a schema that no other operation has. All members of the example are
/// required.
pub(super) fn inline(status: u16, text: &'static str, members: &Value, example: Value) -> Answer {
    let names: Vec<_> = example.as_object().into_iter().flat_map(|o| o.keys().cloned()).collect();
    let schema = json!({ "type": "object", "properties": members, "required": names });
    Answer { status, text, content: Some(("application/json", schema, example)) }
}

pub(super) fn plain_text(content_type: &'static str, text: &'static str, example: &str) -> Answer {
    let content = (content_type, json!({ "type": "string" }), example.into());
    Answer { status: 200, text, content: Some(content) }
}

pub(super) fn no_content(text: &'static str) -> Answer {
    Answer { status: 204, text, content: None }
}
