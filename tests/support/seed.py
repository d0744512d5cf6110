"""Seed data: tables at the size of a company's, at which its plans are made; by SQL, in seconds."""

from __future__ import annotations

from typing import Any

import psycopg

# Months before the last one, of which ensure_partitions made the partitions when they were due.
MONTHS_BEFORE = 4
EARLIER_MONTHS = f"""
DO $$
DECLARE
    kept record;
    month record;
BEGIN
    FOR kept IN SELECT unnest(ARRAY['prompts', 'extension_status', 'compliance_events']) AS name LOOP
        FOR month IN
            SELECT
                kept.name || '_' || to_char(at, 'YYYYMM') AS name,
                (extract(EPOCH FROM at AT TIME ZONE 'UTC') * 1000)::bigint AS first,
                (extract(EPOCH FROM (at + interval '1 month') AT TIME ZONE 'UTC') * 1000)::bigint AS next
            FROM generate_series(2, {MONTHS_BEFORE + 1}) AS ago
            CROSS JOIN LATERAL (
                SELECT date_trunc('month', now() AT TIME ZONE 'UTC') - ago * interval '1 month' AS at
            ) AS starts
        LOOP
            EXECUTE format('CREATE TABLE %I (LIKE %I INCLUDING ALL)', month.name, kept.name);
            EXECUTE format('COMMENT ON TABLE %I IS %L', month.name, 'Partition of ' || kept.name);
            EXECUTE format(
                'ALTER TABLE %I ATTACH PARTITION %I FOR VALUES FROM (%s) TO (%s)',
                kept.name, month.name, month.first, month.next
            );
        END LOOP;
    END LOOP;
END
$$;
"""
# Events are spread over seven months: the first ones are strays, whose month has no partition.
FILL = """
INSERT INTO devices (device_id, key_thumbprint, public_key_pem, hostname, macs, ips, os, last_heartbeat)
SELECT
    'device-' || n, 'thumbprint-' || n, repeat('k', 178), 'host-' || n, ARRAY['a4:83:e7:11:22:33'], ARRAY['10.1.2.3'],
    '{"name": "macOS", "version": "26.1"}', now() - n % 200 * interval '1 day'
FROM generate_series(1, $devices) AS n;
INSERT INTO browser_instances (instance_id, device_id, browser_name, profile_name, last_seen)
SELECT 'instance-' || n, 'device-' || n, 'chrome', 'Work', now() - n % 200 * interval '1 day'
FROM generate_series(1, $devices) AS n;
INSERT INTO prompts ("timestamp", device_id, prompt_id, instance_id, site, url, prompt, username)
SELECT
    ms, 'device-' || (n * 7919 % $devices + 1), gen_random_uuid(), 'instance-' || n, 'chatgpt.com',
    'https://chatgpt.com/c/' || n, repeat('p', 200), 'user-' || n % 1000
FROM generate_series(1, $events) AS n
CROSS JOIN LATERAL (SELECT $now - 1000 - n * (210 * 86400000::bigint / $events) AS ms) AS at;
INSERT INTO extension_status (reported_at, device_id, status_id, instance_id, status)
SELECT "timestamp", device_id, prompt_id, instance_id, 'enabled' FROM prompts;
INSERT INTO compliance_events (detected_at, device_id, event_id, event_type, severity, user_context)
SELECT "timestamp", device_id, prompt_id, 'tamper_detected', 'low', to_jsonb(username) FROM prompts;
INSERT INTO client_assertions (device_id, jti, use_id, expires_at)
SELECT 'device-' || n, 'jti-' || n, gen_random_uuid(), now() + (n - 100) * interval '1 second'
FROM generate_series(1, $devices) AS n;
INSERT INTO enrollments (enrollment_id, label, max_uses, expires_at)
SELECT ('00000000-0000-8000-8000-' || lpad(n::text, 12, '0'))::uuid, 'label', 1000000, now() + interval '1 day'
FROM generate_series(1, 2000) AS n;
INSERT INTO audit_log (audit_id, at, actor, action, target)
SELECT gen_random_uuid(), now() - n * interval '1 hour', 'anna', 'device.revoke', 'device-' || n
FROM generate_series(1, 20000) AS n;
INSERT INTO legal_holds (hold_id, device_id, from_ms, to_ms, reason)
SELECT gen_random_uuid(), 'device-' || n, $now - n * 86400000::bigint, $now, 'reason' FROM generate_series(1, 30) AS n;
"""


def fill(connection: psycopg.Connection[Any], devices: int = 20_000, events: int = 28_000) -> None:
    """Fill migrated, empty tables; statistics are left to the caller."""
    now = "(extract(EPOCH FROM now()) * 1000)::bigint"
    connection.execute(EARLIER_MONTHS)
    connection.execute(FILL.replace("$devices", str(devices)).replace("$events", str(events)).replace("$now", now))
