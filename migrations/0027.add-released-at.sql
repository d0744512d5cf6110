-- Ownership of browser instances: whether an operator released one, and whether a device was erased, so that its
-- instances may move to another device.
-- Deploy before the code. Locks: each table exclusively, for the moment that a column without a default takes.
ALTER TABLE devices ADD COLUMN erased_at timestamptz;
ALTER TABLE browser_instances ADD COLUMN released_at timestamptz;

COMMENT ON COLUMN browser_instances.released_at IS
'Database clock; null unless an operator lets any device register the instance.';
COMMENT ON COLUMN browser_instances.device_id IS
'The device that it belongs to. Changes when it is released or its device is revoked, erased, archived or gone.';
COMMENT ON COLUMN devices.erased_at IS 'Database clock; null unless its metadata was erased and none has come since.';
