-- Loses nothing.
DROP FUNCTION count_held(text, text, text, bigint, text, uuid, int);
DROP FUNCTION is_device_held(text);
DROP FUNCTION is_about(browser_instances, text, text);
DROP FUNCTION is_about(compliance_events, text, text);
DROP FUNCTION is_about(extension_status, text, text);
DROP FUNCTION is_about(prompts, text, text);
