-- Note a part of an upload that is still pending.
-- KEYS: upload hash, parts.  ARGV: part id, part, its size, most bytes of all parts together
-- Returns 1 done, 0 the upload has ended, -1 no such upload, -2 too many bytes.
local record = redis.call('HGET', KEYS[1], 'record')
if not record then return -1 end
if cjson.decode(record)['status'] ~= 'pending' then return 0 end
if tonumber(redis.call('HGET', KEYS[1], 'received')) + tonumber(ARGV[3]) > tonumber(ARGV[4]) then return -2 end
redis.call('HINCRBY', KEYS[1], 'received', ARGV[3])
redis.call('HSET', KEYS[2], ARGV[1], ARGV[2])
return 1
