-- Replace the record of an upload that is pending, and give the bytes of its parts back; one that has ended stays as
-- it is.
-- KEYS: upload hash, bytes of the project.  ARGV: new record.
-- Returns the record that holds now, or nothing if there is no such upload.
local record = redis.call('HGET', KEYS[1], 'record')
if not record then return false end
if cjson.decode(record)['status'] ~= 'pending' then return record end
redis.call('HSET', KEYS[1], 'record', ARGV[1])
local counted = redis.call('HGET', KEYS[1], 'counted')
redis.call('HDEL', KEYS[1], 'counted')
if counted and redis.call('EXISTS', KEYS[2]) == 1 then redis.call('DECRBY', KEYS[2], counted) end
return ARGV[1]
