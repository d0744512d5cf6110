-- Prompts: what was sent to AI sites.
-- Deploy before the code. Locks: none that anyone waits for; the table is new.
-- Time leads the key: inserts go to the end of the index, and newest-first pages read it backwards. The device is part
-- of the key, so that no device can collide with another's ids.
CREATE TABLE prompts (
    "timestamp" bigint NOT NULL,
    device_id text NOT NULL,
    prompt_id uuid NOT NULL,
    instance_id text NOT NULL,
    site text NOT NULL,
    url text NOT NULL,
    prompt text NOT NULL,
    browser_name text,
    browser_version text,
    profile_name text,
    username text,
    page_title text,
    conversation_id text,
    model text,
    action text CHECK (action IN ('allowed', 'warned', 'blocked', 'redacted')),
    metadata jsonb,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY ("timestamp", device_id, prompt_id)
);

COMMENT ON TABLE prompts IS 'Prompts sent to AI sites, one row each. Evidence: never updated.';
COMMENT ON COLUMN prompts."timestamp" IS 'Client clock, epoch milliseconds.';
COMMENT ON COLUMN prompts.device_id IS 'The device whose token reported it.';
COMMENT ON COLUMN prompts.prompt_id IS 'Chosen by the client, or derived from the content.';
COMMENT ON COLUMN prompts.instance_id IS 'The browser instance; may be registered later, or never.';
COMMENT ON COLUMN prompts.site IS 'The AI site, such as chatgpt.com.';
COMMENT ON COLUMN prompts.url IS 'Address of the page. May hold personal data.';
COMMENT ON COLUMN prompts.prompt IS 'The text. Sensitive personal data.';
COMMENT ON COLUMN prompts.browser_name IS 'Such as chrome or firefox.';
COMMENT ON COLUMN prompts.browser_version IS 'As the extension reports it.';
COMMENT ON COLUMN prompts.profile_name IS 'Name of the browser profile. Personal data.';
COMMENT ON COLUMN prompts.username IS 'Who was signed in. Personal data.';
COMMENT ON COLUMN prompts.page_title IS 'Title of the page. May hold personal data.';
COMMENT ON COLUMN prompts.conversation_id IS 'The site''s id of the conversation.';
COMMENT ON COLUMN prompts.model IS 'The model that the user chose.';
COMMENT ON COLUMN prompts.action IS 'What the extension did: allowed, warned, blocked or redacted.';
COMMENT ON COLUMN prompts.metadata IS 'Whatever else the extension reports. May hold personal data.';
COMMENT ON COLUMN prompts.created_at IS 'Database clock: when it was stored.';
