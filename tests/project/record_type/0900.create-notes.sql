-- Notes, partitioned by month like every event table.
CREATE TABLE notes (
    noted_at bigint NOT NULL,
    device_id text NOT NULL,
    note_id uuid NOT NULL,
    instance_id text,
    text text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    erased_at timestamptz,
    PRIMARY KEY (noted_at, device_id, note_id)
) PARTITION BY RANGE (noted_at);
CREATE TABLE notes_default PARTITION OF notes DEFAULT;

CREATE FUNCTION is_about(stored notes, about_device_id text, about_username text)
RETURNS boolean
LANGUAGE sql
STABLE
AS $$
SELECT (about_device_id IS NULL OR stored.device_id = about_device_id) AND about_username IS NULL
$$;
