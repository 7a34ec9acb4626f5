-- Replace the record of an upload that is pending; one that has ended stays as it is.
-- KEYS: upload hash.  ARGV: new record.  Returns the record that holds now, or nothing if there is no such upload.
local record = redis.call('HGET', KEYS[1], 'record')
if not record then return false end
if cjson.decode(record)['status'] ~= 'pending' then return record end
redis.call('HSET', KEYS[1], 'record', ARGV[1])
return ARGV[1]
