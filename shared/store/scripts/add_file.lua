-- Record a file and count its bytes, once, if the project has room; it takes the place of its upload's parts.
-- KEYS: file, files of the project, bytes of the project, sequence, project, batches that hold the file, and the upload
--       hash where there is one
-- ARGV: file id, record, size in bytes, default limit of a project in bytes or -1 to count only
-- Returns 1 added, 0 it is there already, -1 no room, -2 the project's bytes were never counted.
if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
local used = redis.call('GET', KEYS[3])
if not used then return -2 end
local counted = KEYS[7] and tonumber(redis.call('HGET', KEYS[7], 'counted') or 0) or 0
-- Made again after it was deleted: as long as a batch holds it, it is counted already.
local size = redis.call('EXISTS', KEYS[6]) == 1 and 0 or tonumber(ARGV[3])
local more = size - counted
local limit = tonumber(ARGV[4])
if limit >= 0 then
  local project = redis.call('GET', KEYS[5])
  local limits = project and cjson.decode(project)['limits'] or {}
  if type(limits['storage_bytes']) == 'number' then limit = limits['storage_bytes'] end
  if limit > 0 and more > 0 and tonumber(used) + more > limit then return -1 end
end
redis.call('SET', KEYS[1], ARGV[2])
redis.call('ZADD', KEYS[2], redis.call('INCR', KEYS[4]), ARGV[1])
redis.call('INCRBY', KEYS[3], string.format('%.0f', more))
if KEYS[7] then redis.call('HDEL', KEYS[7], 'counted') end
return 1
