-- Note a part of an upload that is still pending, and count its bytes, once, if the project has room.
-- KEYS: upload hash, parts, uploads, bytes of the project, project
-- ARGV: part id, part, its size, most bytes of all parts together, upload id,
--       default limit of a project in bytes or -1 to count only
-- Returns 1 done, 0 the upload has ended, -1 no room, -2 the project's bytes were never counted, -3 no such upload,
-- -4 too many bytes.
local record = redis.call('HGET', KEYS[1], 'record')
if not record then return -3 end
-- One that was swept is pending for ever: what is counted for it then would never be given back.
if cjson.decode(record)['status'] ~= 'pending' or not redis.call('ZSCORE', KEYS[3], ARGV[5]) then return 0 end
if redis.call('HEXISTS', KEYS[2], ARGV[1]) == 1 then return 1 end
local size = tonumber(ARGV[3])
if tonumber(redis.call('HGET', KEYS[1], 'received')) + size > tonumber(ARGV[4]) then return -4 end
local used = redis.call('GET', KEYS[4])
if not used then return -2 end
local limit = tonumber(ARGV[6])
if limit >= 0 then
  local project = redis.call('GET', KEYS[5])
  local limits = project and cjson.decode(project)['limits'] or {}
  if type(limits['storage_bytes']) == 'number' then limit = limits['storage_bytes'] end
  if limit > 0 and tonumber(used) + size > limit then return -1 end
end
redis.call('HINCRBY', KEYS[1], 'received', ARGV[3])
redis.call('HINCRBY', KEYS[1], 'counted', ARGV[3])
redis.call('INCRBY', KEYS[4], ARGV[3])
redis.call('HSET', KEYS[2], ARGV[1], ARGV[2])
return 1
