-- Legal holds: rows that neither retention nor erasure may touch, by device, by time, or both.
-- Deploy before the code. Locks: none that anyone waits for; the table and the function are new.
CREATE TABLE legal_holds (
    hold_id uuid PRIMARY KEY,
    device_id text,
    from_ms bigint,
    to_ms bigint,
    reason text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    released_at timestamptz,
    CHECK (device_id IS NOT NULL OR from_ms IS NOT NULL OR to_ms IS NOT NULL),
    CHECK (from_ms < to_ms)
);

COMMENT ON TABLE legal_holds IS 'Evidence that must stay. In force until released.';
COMMENT ON COLUMN legal_holds.hold_id IS 'Made by the command.';
COMMENT ON COLUMN legal_holds.device_id IS 'Null: every device.';
COMMENT ON COLUMN legal_holds.from_ms IS
'Client clock of the rows, epoch milliseconds, included; null: from the first.';
COMMENT ON COLUMN legal_holds.to_ms IS 'Client clock of the rows, epoch milliseconds, excluded; null: for ever.';
COMMENT ON COLUMN legal_holds.reason IS 'As the operator gave it.';
COMMENT ON COLUMN legal_holds.created_at IS 'Database clock.';
COMMENT ON COLUMN legal_holds.released_at IS 'Database clock; null while it is in force.';

-- Whether a row is held: the one place that says what a hold means.
CREATE FUNCTION is_held(row_device_id text, row_ms bigint)
RETURNS boolean
LANGUAGE sql
STABLE
AS $$
SELECT EXISTS (
    SELECT
    FROM legal_holds
    WHERE
        released_at IS NULL
        AND (device_id IS NULL OR device_id = row_device_id)
        AND (from_ms IS NULL OR from_ms <= row_ms)
        AND (to_ms IS NULL OR to_ms > row_ms)
)
$$;
REVOKE EXECUTE ON FUNCTION is_held(text, bigint) FROM public;
