-- Delete a flow.
-- KEYS: flow hash, lease, flows of the project, active flows, those of the project
-- ARGV: flow id, beginning of the places' keys
redis.call('DEL', KEYS[1], KEYS[2])
redis.call('ZREM', KEYS[4], ARGV[1])
redis.call('SREM', KEYS[5], ARGV[1])
leave_list(KEYS[3], ARGV[1], ARGV[2])
return 1
