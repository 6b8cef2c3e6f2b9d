-- Compare-and-swap of one partition: every row and the watermark, or nothing.
--
-- KEYS[1]   the watermark (a hash); KEYS[2…] the rows (hashes), last those that go. All carry the tag of one partition.
-- ARGV[1]   offset that the watermark must have, '' if there must be none
-- ARGV[2]   the new offset        ARGV[3]  id of the interactions topic     ARGV[4]  number of partitions
-- ARGV[5]   ms that a row lives; '' for as long as it would: then one that is gone stays gone
-- ARGV[6]   how many rows go       ARGV[7]  how many marks follow, then a name and an offset for each
-- then for each row that stays: vector, recommendations, state, model, updated_at
--
-- Returns {1, new offset} when swapped, {0, offset found, '' for none} when somebody moved the watermark.
local at = redis.call('HMGET', KEYS[1], 'offset', 'topic_id')
local found = at[1] or ''
if found ~= ARGV[1] or (at[2] and at[2] ~= ARGV[3]) then
  return {0, found}
end
-- A script that fails half-way is not undone: look at every row before the first write, so that a key that is not a hash
-- (somebody else's) fails the whole swap. The first write must be one that memory running out refuses, as HSET is and
-- PEXPIRE is not: Redis 6.2 looks at the memory before the first write of a script only.
for row = 2, #KEYS do
  redis.call('HEXISTS', KEYS[row], 'state')
end
redis.call('HSET', KEYS[1], 'offset', ARGV[2], 'topic_id', ARGV[3], 'partitions', ARGV[4])
local next = 8
for _ = 1, tonumber(ARGV[7]) do
  redis.call('HSET', KEYS[1], ARGV[next], ARGV[next + 1])
  next = next + 2
end
local last = #KEYS - tonumber(ARGV[6])
for row = 2, last do
  if ARGV[5] ~= '' or redis.call('HEXISTS', KEYS[row], 'state') == 1 then
    redis.call('HSET', KEYS[row], 'vector', ARGV[next], 'recommendations', ARGV[next + 1], 'state', ARGV[next + 2],
      'model', ARGV[next + 3], 'updated_at', ARGV[next + 4])
  end
  if ARGV[5] ~= '' then
    redis.call('PEXPIRE', KEYS[row], ARGV[5])
  end
  next = next + 5
end
for row = last + 1, #KEYS do
  redis.call('DEL', KEYS[row])
end
return {1, ARGV[2]}
