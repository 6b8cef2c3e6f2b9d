-- Encoded rows of one partition, written by the worker that holds its claim, while nobody else moves the watermark.
--
-- KEYS, ARGV[1…3] and what is returned: as in fill.lua
-- then for each row: user id, vector, recommendations, state, model, updated_at
if redis.call('GET', KEYS[2]) ~= ARGV[2] then
  return 0
end
if (redis.call('HGET', KEYS[1], 'offset') or '') ~= ARGV[1] then
  return -1
end
local next = 4
for row = 4, #KEYS do
  redis.call('HSET', KEYS[row], 'vector', ARGV[next + 1], 'recommendations', ARGV[next + 2], 'state', ARGV[next + 3],
    'model', ARGV[next + 4], 'updated_at', ARGV[next + 5])
  redis.call('HDEL', KEYS[row], 'trigger')
  redis.call('PEXPIRE', KEYS[row], ARGV[3])
  redis.call('SREM', KEYS[3], ARGV[next])
  next = next + 6
end
return 1
