//! Trace and log settings as messages.

use crate::plane::logging::{LogSettings, LogValue};
use crate::trace::Setting;
use mortise_grpc_proto::inference as pb;
use mortise_types::{Error, Result};
use pb::log_settings_request::setting_value::ParameterChoice as Sent;
use pb::log_settings_response::setting_value::ParameterChoice as Told;

pub(super) fn trace_response(
    settings: impl IntoIterator<Item = Setting>,
) -> pb::TraceSettingResponse {
    let value = |value| pb::trace_setting_response::SettingValue { value };
    let settings = settings.into_iter().map(|(name, values)| (name.to_owned(), value(values)));
    pb::TraceSettingResponse { settings: settings.collect() }
}

/// The changes that a request asks for.
///
/// # Errors
/// When a setting has no value.
pub(super) fn log_changes(request: pb::LogSettingsRequest) -> Result<Vec<(String, LogValue)>> {
    let change = |(name, value): (String, pb::log_settings_request::SettingValue)| {
        let value = match value.parameter_choice {
            Some(Sent::BoolParam(on)) => LogValue::Bool(on),
            Some(Sent::Uint32Param(number)) => LogValue::Number(number.into()),
            Some(Sent::StringParam(text)) => LogValue::Text(text),
            None => return Err(Error::invalid(format!("{name} has no value"))),
        };
        Ok((name, value))
    };
    request.settings.into_iter().map(change).collect()
}

pub(super) fn log_response(settings: LogSettings) -> pb::LogSettingsResponse {
    let level = u32::try_from(settings.verbose_level).unwrap_or(u32::MAX);
    let values = [
        ("log_file", Told::StringParam(String::new())),
        ("log_info", Told::BoolParam(settings.info)),
        ("log_warning", Told::BoolParam(settings.warning)),
        ("log_error", Told::BoolParam(settings.error)),
        ("log_verbose_level", Told::Uint32Param(level)),
        ("log_format", Told::StringParam("default".to_owned())),
    ];
    let value = |choice| pb::log_settings_response::SettingValue { parameter_choice: Some(choice) };
    let settings = values.into_iter().map(|(name, choice)| (name.to_owned(), value(choice)));
    pb::LogSettingsResponse { settings: settings.collect() }
}
