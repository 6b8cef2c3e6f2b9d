-- How far a partition is filled: its progress and its watermark, by the worker that holds its claim.
--
-- KEYS[1]   the watermark; KEYS[2] the claim; KEYS[3] the progress. All carry one tag.
-- ARGV[1]   offset that the watermark must have, '' if there must be none
-- ARGV[2]   token that the claim must hold       ARGV[3]  ms that the claim lives from now
-- ARGV[4]   how many names and values of the progress follow, then of the watermark (none: it stays)
--
-- Returns 1 when written; 0 when the claim is another's; -1 when the watermark was moved. Then nothing is written.
if redis.call('GET', KEYS[2]) ~= ARGV[2] then
  return 0
end
if (redis.call('HGET', KEYS[1], 'offset') or '') ~= ARGV[1] then
  return -1
end
local count = tonumber(ARGV[4])
for at = 5, 4 + count, 2 do
  redis.call('HSET', KEYS[3], ARGV[at], ARGV[at + 1])
end
for at = 5 + count, #ARGV, 2 do
  redis.call('HSET', KEYS[1], ARGV[at], ARGV[at + 1])
end
redis.call('PEXPIRE', KEYS[2], ARGV[3])
return 1
