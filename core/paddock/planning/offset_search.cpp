// Offset assignment by a complete search: given buffers with fixed lifetimes, offsets so that each ends under its limit.
//
// Time is cut into sections between the distinct ends of lifetimes. A solution is built from the ground up: `floor[s]`
// is the height below which nothing more is put in section s, a buffer is placed on the highest floor of its lifetime,
// and only where that is a valley of the skyline (a run of sections of one height between higher ones). A node of the
// search takes one section of one valley and asks which buffer comes next there: one child for each buffer that lies
// wholly in the valley and covers the section, and one in which none of them does, where the floor of the section rises
// to the lowest height at which anything else could come next. The children exclude one another, and any valley and
// any section may be asked, so the search asks where the fewest answers are left, weighted by where it failed before.
//
// A node fails when in some section the buffers left, each no lower than its own ground, cannot all end under the limit
// (the makespan of one machine with release times), or when a buffer left would fit into room given up below it: then
// the solution with that buffer dropped is found elsewhere. States that failed are remembered, over restarts too.
// Parts of the timeline that no buffer left connects are searched one by one.
//
// A plain C interface at the end; no call throws, and each comes back at its deadline.

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <limits>
#include <map>
#include <new>
#include <random>
#include <tuple>
#include <vector>

namespace {

using Int = std::int64_t;
using Key = std::uint64_t;
constexpr Int kInfinite = std::numeric_limits<Int>::max();
constexpr int kDeepest = 8000;  // frames of the recursion: under 2 MB of stack

using Clock = std::chrono::steady_clock;

Key mixed(Key x) {  // the finaliser of splitmix64
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
  return x ^ (x >> 31);
}

// Keys of failed states: open addressing over a few slots; a full neighbourhood forgets its oldest guess.
class Failed {
 public:
  Failed() : slots_(1 << 12) {}

  bool holds(Key key) const {
    for (int i = 0; i < kProbes; ++i)
      if (slots_[(key + i) & (slots_.size() - 1)] == key) return true;
    return false;
  }

  void add(Key key) {
    if (++count_ * 2 > slots_.size() && slots_.size() < kLargest) grow();
    put(key);
  }

  void clear() {
    std::fill(slots_.begin(), slots_.end(), 0);
    count_ = 0;
  }

 private:
  static constexpr int kProbes = 8;
  static constexpr std::size_t kLargest = std::size_t{1} << 22;

  void put(Key key) {
    for (int i = 0; i < kProbes; ++i) {
      Key& slot = slots_[(key + i) & (slots_.size() - 1)];
      if (slot == 0 || slot == key) {
        slot = key;
        return;
      }
    }
    slots_[(key + (key >> 61)) & (slots_.size() - 1)] = key;
  }

  void grow() {
    std::vector<Key> old(slots_.size() * 4);
    old.swap(slots_);
    for (Key key : old)
      if (key) put(key);
  }

  std::vector<Key> slots_;
  std::size_t count_ = 0;
};

Clock::time_point after(double seconds) {
  return Clock::now() + std::chrono::milliseconds(static_cast<Int>(std::min(std::max(seconds, 0.0), 1e6) * 1000));
}

enum Outcome : int { kUnknown = 0, kFound = 1, kImpossible = 2, kBroken = -1 };

class Search {
 public:
  Search(int buffers, int sections, const std::int32_t* lower, const std::int32_t* upper, const Int* size,
         const Int* alignment, const Int* padding, Int unit, Key seed)
      : buffers_(buffers), sections_(sections), lower_(lower, lower + buffers), upper_(upper, upper + buffers),
        size_(size, size + buffers), alignment_(alignment, alignment + buffers), padding_(padding, padding + buffers), unit_(unit),
        limit_(buffers), twin_(buffers, -1),
        left_(buffers, 1), ground_(buffers), offset_(buffers), priority_(buffers), start_(sections + 1),
        starting_(sections), floor_(sections), solid_(sections), sum_(sections), count_(sections),
        bridges_(sections + 1), weight_(sections, 1.0), dirty_(sections), here_(sections + 1), before_(sections + 1),
        behind_(sections + 1), random_(seed), key_buffer_(buffers), key_floor_(sections), key_solid_(sections) {
    std::map<std::tuple<Int, Int, Int, Int, Int>, int> same;
    for (int j = 0; j < buffers; ++j) {
      auto [found, fresh] = same.try_emplace({lower_[j], upper_[j], size_[j], alignment_[j], padding_[j]}, j);
      if (!fresh) twin_[j] = found->second;
      found->second = j;
      starting_[lower_[j]].push_back(j);
      for (int s = lower_[j]; s < upper_[j]; ++s) {
        sum_[s] += size_[j];
        ++count_[s];
        bridges_[s] += s > lower_[j];
      }
      key_buffer_[j] = random_();
    }
    Int all = 0;
    for (int s = 0; s < sections; ++s) {
      start_[s] = static_cast<std::int32_t>(all);
      all += count_[s];
      key_floor_[s] = random_();
      key_solid_[s] = random_();
    }
    start_[sections] = static_cast<std::int32_t>(all);
    members_.resize(all);
    std::vector<std::int32_t> at(start_.begin(), start_.end());
    for (int j = 0; j < buffers; ++j)
      for (int s = lower_[j]; s < upper_[j]; ++s) members_[at[s]++] = j;
  }

  // One slice: up to `nodes` nodes for this height in bytes. Restarts inside, and goes on with what it learned before;
  // what failed for one height fails for those under it.
  Outcome run(Int height, Int nodes, double seconds, Int* offsets) {
    if (height > height_) failed_.clear();
    height_ = height;
    for (int j = 0; j < buffers_; ++j) limit_[j] = (height + padding_[j]) / unit_;
    highest_ = buffers_ ? *std::max_element(limit_.begin(), limit_.end()) : 0;
    deadline_ = after(seconds);
    late_ = false;
    for (int s = 0; s < sections_; ++s)
      if (sum_[s] > highest_) return kImpossible;
    for (Int used = 0; used < nodes && !late_; used += nodes_) {
      ++rounds_;
      prioritise();
      nodes_ = 0;
      allowed_ = std::min<Int>(nodes - used, luby(rounds_) * kRestart);
      stopped_ = false;
      const bool found = solve(0, sections_, 0);
      if (found) std::copy(offset_.begin(), offset_.end(), offsets);
      undo(0);
      if (found) return kFound;
      if (!stopped_) return kImpossible;
    }
    return kUnknown;
  }

  Int nodes() const { return total_; }

 private:
  static constexpr Int kRestart = 2000;

  struct Change {
    Int* place;
    Int value;
  };

  static Int luby(Int i) {
    for (Int k = 1;; ++k) {
      if (i == (Int{1} << k) - 1) return Int{1} << (k - 1);
      if (i < (Int{1} << k) - 1) {
        i -= (Int{1} << (k - 1)) - 1;
        k = 0;
      }
    }
  }

  // In which order buffers are tried: the largest first, by area, size and lifetime in turn, with some noise.
  void prioritise() {
    std::uniform_real_distribution<double> noise(0.0, rounds_ > 1 ? 0.2 : 0.0);
    for (int j = 0; j < buffers_; ++j) {
      const double length = std::log(upper_[j] - lower_[j]), size = std::log(static_cast<double>(size_[j]));
      const Int kind = rounds_ % 3;
      priority_[j] = (kind == 2 ? 0 : length) + (kind == 0 ? 0 : size) + noise(random_);
    }
    for (double& weight : weight_) weight = 1 + (weight - 1) * 0.9;
  }

  void set(Int& place, Int value) {
    trail_.push_back({&place, place});
    place = value;
  }

  void undo(std::size_t mark) {
    for (; trail_.size() > mark; trail_.pop_back()) *trail_.back().place = trail_.back().value;
  }

  Int aligned(int j, Int height) const {
    const Int unit = alignment_[j];
    return unit == 1 ? height : (height + unit - 1) / unit * unit;
  }

  // The buffers left of a section: the last `count_[s]` of all that live in it.
  std::int32_t* left_of(int s) { return members_.data() + start_[s + 1] - count_[s]; }

  bool fail(int s) {
    weight_[s] += 1;
    return false;
  }

  bool place(int j) {
    const Int offset = aligned(j, ground_[j]), top = offset + size_[j];
    offset_[j] = offset;
    set(left_[j], 0);
    for (int s = lower_[j]; s < upper_[j]; ++s) {
      // Out of the buffers left of this section, to just before them: taking back the count brings it back.
      std::int32_t* const members = left_of(s);
      std::int32_t* const at = std::find(members, members + count_[s], j);
      std::copy_backward(members, at, at + 1);
      *members = j;
      set(sum_[s], sum_[s] - size_[j]);
      set(count_[s], count_[s] - 1);
      if (s > lower_[j]) set(bridges_[s], bridges_[s] - 1);
      set(floor_[s], top);
      set(solid_[s], top);
    }
    return settle(lower_[j], upper_[j], top);
  }

  bool lift(int s, Int height) {
    set(floor_[s], height);
    return settle(s, s + 1, height);
  }

  // Draws the conclusions from floors of [from, to) that rose to `height`; false where they contradict the limits.
  bool settle(int from, int to, Int height) {
    int first = from, last = to;
    ++dirty_stamp_;
    for (int s = from; s < to; ++s) {
      dirty_[s] = dirty_stamp_;
      const std::int32_t* const members = left_of(s);
      for (Int i = 0; i < count_[s]; ++i) {
        const int j = members[i];
        if (ground_[j] >= height) continue;
        set(ground_[j], height);
        if (aligned(j, height) + size_[j] > limit_[j]) return fail(s);
        for (int t = lower_[j]; t < upper_[j]; ++t) dirty_[t] = dirty_stamp_;
        first = std::min(first, lower_[j]);
        last = std::max(last, upper_[j]);
      }
    }
    for (int s = first; s < last; ++s)
      if (dirty_[s] == dirty_stamp_ && count_[s] && !holds(s, height)) return fail(s);
    for (int s = first; s < last; ++s)
      if (dirty_[s] == dirty_stamp_ && count_[s] && solid_[s] < floor_[s] && droppable(s, first)) return false;
    return true;
  }

  // Whether the buffers left in a section can end under the limit, now that some have their ground at `height`: all
  // of them from the lowest ground, and those no lower than `height` from there. Lifts the floor to the lowest.
  bool holds(int s, Int height) {
    const std::int32_t* const members = left_of(s);
    Int raised = 0, lowest = kInfinite;
    for (Int i = 0; i < count_[s]; ++i) {
      const Int ground = ground_[members[i]];
      lowest = std::min(lowest, ground);
      raised += ground >= height ? size_[members[i]] : 0;
    }
    if (lowest + sum_[s] > highest_ || (raised && height + raised > highest_)) return false;
    if (lowest > floor_[s]) set(floor_[s], lowest);
    return true;
  }

  // Whether some buffer left fits into the room given up between what is placed and the floor.
  bool droppable(int s, int first) {
    const Int room = floor_[s] - solid_[s];
    const std::int32_t* const members = left_of(s);
    for (Int i = 0; i < count_[s]; ++i) {
      const int j = members[i];
      if (size_[j] > room || (s != lower_[j] && s != first)) continue;
      Int under = 0, over = kInfinite;
      for (int t = lower_[j]; t < upper_[j] && under + size_[j] <= over; ++t) {
        under = std::max(under, solid_[t]);
        over = std::min(over, floor_[t]);
      }
      if (aligned(j, under) + size_[j] <= over) return true;
    }
    return false;
  }

  bool over() {
    ++total_;
    if (++nodes_ > allowed_) stopped_ = true;
    if ((nodes_ & 63) == 0 && Clock::now() > deadline_) stopped_ = late_ = true;
    return stopped_;
  }

  // Places every buffer left in [from, to); leaves all as it was where that is impossible or the search is stopped.
  bool solve(int from, int to, int depth) {
    if (depth > kDeepest) stopped_ = true;
    if (over()) return false;
    const std::size_t mark = trail_.size(), base = parts_.size();
    for (int s = from; s < to;) {
      int end = s + 1;
      if (count_[s]) {
        while (end < to && bridges_[end]) ++end;
        parts_.push_back({s, end});
      }
      s = end;
    }
    const std::size_t parts = parts_.size() - base;
    bool solved = true;
    if (parts == 1) {
      const auto [first, last] = parts_[base];
      solved = branch(first, last, depth);
    } else if (parts > 1) {  // the shortest first: it fails soonest
      std::sort(parts_.begin() + base, parts_.end(),
                [](const auto& a, const auto& b) { return a.second - a.first < b.second - b.first; });
      for (std::size_t i = base; solved && i < base + parts; ++i) {
        const auto [first, last] = parts_[i];
        solved = solve(first, last, depth + 1);
      }
    }
    parts_.resize(base);
    if (!solved) undo(mark);
    return solved;
  }

  Key key(int from, int to) const {
    Key sum = 1;
    for (int s = from; s < to; ++s) {
      sum += mixed(floor_[s] + key_floor_[s]);
      if (solid_[s] != floor_[s]) sum += mixed(solid_[s] + key_solid_[s]);
      for (int j : starting_[s])
        if (left_[j]) sum += key_buffer_[j];
    }
    return sum ? sum : 1;
  }

  struct Question {
    int section = -1;
    int valley = 0;      // its first section
    Int height = -1;     // where the floor rises to when no candidate comes next; -1 where that is impossible
  };

  bool branch(int from, int to, int depth) {
    const Key state = key(from, to);
    if (failed_.holds(state)) return false;
    Question question;
    if (!choose(from, to, question)) {
      failed_.add(state);
      return false;
    }
    const std::size_t mark = trail_.size(), base = tries_.size();
    const int s = question.section;
    for (int t = question.valley; t <= s; ++t)
      for (int j : starting_[t])
        if (candidate(j, floor_[s]) && upper_[j] > s) tries_.push_back(j);
    std::sort(tries_.begin() + base, tries_.end(), [this](int a, int b) {
      return priority_[a] != priority_[b] ? priority_[a] > priority_[b] : a < b;
    });
    bool solved = false;
    for (std::size_t i = base; !solved && !stopped_ && i < tries_.size(); ++i) {
      solved = place(tries_[i]) && solve(from, to, depth + 1);
      if (!solved) undo(mark);
    }
    tries_.resize(base);
    if (!solved && !stopped_ && question.height >= 0) {
      solved = lift(s, question.height) && solve(from, to, depth + 1);
      if (!solved) undo(mark);
    }
    if (!solved && !stopped_) failed_.add(state);
    return solved;
  }

  // Of buffers that are alike only the first is tried.
  bool candidate(int j, Int height) const {
    return left_[j] && ground_[j] == height && (twin_[j] < 0 || !left_[twin_[j]]);
  }

  // The section to ask about: with the fewest answers for its weight; false where some section has none.
  bool choose(int from, int to, Question& best) {
    double score = std::numeric_limits<double>::infinity();
    for (int a = from, b; a < to; a = b) {
      const Int height = floor_[a];
      for (b = a + 1; b < to && floor_[b] == height;) ++b;
      const Int wall = std::min(a > from ? floor_[a - 1] : kInfinite, b < to ? floor_[b] : kInfinite);
      if (wall < height) continue;
      std::fill(here_.begin() + a, here_.begin() + b + 1, 0);
      std::fill(before_.begin() + a, before_.begin() + b + 1, kInfinite);
      std::fill(behind_.begin() + a, behind_.begin() + b + 1, kInfinite);
      for (int t = a; t < b; ++t)
        for (int j : starting_[t])
          if (candidate(j, height)) {
            ++here_[t];
            --here_[upper_[j]];
            before_[upper_[j]] = std::min(before_[upper_[j]], size_[j]);
            if (t > a) behind_[t - 1] = std::min(behind_[t - 1], size_[j]);
          }
      for (int t = b - 2; t >= a; --t) behind_[t] = std::min(behind_[t], behind_[t + 1]);
      Int answers = 0, smallest = kInfinite;
      for (int s = a; s < b; ++s) {
        answers += here_[s];
        smallest = std::min(smallest, before_[s]);
        const Int beside = std::min(smallest, behind_[s]);
        const Int rises = std::min(wall, beside == kInfinite ? kInfinite : height + beside);
        const bool may = rises <= highest_ - sum_[s];
        const Int total = answers + may;
        if (total == 0) return fail(s);
        const double worth = total == 1 ? 0.0 : static_cast<double>(total) / weight_[s];
        if (worth < score) {
          score = worth;
          best = {s, a, may ? rises : -1};
        }
      }
    }
    return true;
  }

  const int buffers_, sections_;
  const std::vector<std::int32_t> lower_, upper_;
  const std::vector<Int> size_, alignment_, padding_;
  const Int unit_;
  std::vector<Int> limit_;               // by buffer: where it must end for the height that is searched
  std::vector<int> twin_;                // the buffer just before among those that are alike, or -1
  std::vector<Int> left_;                // by buffer: 1 until it is placed
  std::vector<Int> ground_;              // by buffer: the highest floor of its lifetime
  std::vector<Int> offset_;
  std::vector<double> priority_;
  std::vector<std::int32_t> start_, members_;    // by section: first those that are placed, then those left
  std::vector<std::vector<int>> starting_;       // by section: the buffers whose lifetime begins there
  std::vector<Int> floor_, solid_;       // by section: nothing more comes below floor; solid is the top of what is placed
  std::vector<Int> sum_, count_;         // by section: sizes and number of the buffers left
  std::vector<Int> bridges_;             // by section: the buffers left that live in it and in the section before
  std::vector<double> weight_;           // by section: how often the search failed there, fading
  std::vector<Int> dirty_;
  Int dirty_stamp_ = 0;
  std::vector<Int> here_, before_, behind_;  // of choose()
  std::mt19937_64 random_;
  std::vector<Key> key_buffer_, key_floor_, key_solid_;
  std::vector<Change> trail_;
  std::vector<std::pair<int, int>> parts_;
  std::vector<int> tries_;
  Failed failed_;
  Clock::time_point deadline_;
  Int height_ = 0, highest_ = 0, nodes_ = 0, allowed_ = 0, rounds_ = 0, total_ = 0;
  bool stopped_ = false, late_ = false;
};

}  // namespace

#if defined(_WIN32)
#define PADDOCK_EXPORT extern "C" __declspec(dllexport)
#else
#define PADDOCK_EXPORT extern "C" __attribute__((visibility("default")))
#endif

// Lifetimes are half-open, in sections; sizes, alignments and offsets count in units, which are positive numbers of
// bytes; `padding` is by how many bytes a size is more than was asked for. Null where memory is short.
PADDOCK_EXPORT void* paddock_search_new(std::int32_t buffers, std::int32_t sections, const std::int32_t* lower,
                                        const std::int32_t* upper, const std::int64_t* size,
                                        const std::int64_t* alignment, const std::int64_t* padding,
                                        std::int64_t unit, std::uint64_t seed) {
  try {
    return new Search(buffers, sections, lower, upper, size, alignment, padding, unit, seed);
  } catch (...) {
    return nullptr;
  }
}

// 1: found, and `offsets` are written; 2: no offsets end at this height; 0: not known yet; -1: memory is short.
PADDOCK_EXPORT std::int32_t paddock_search_run(void* search, std::int64_t height, std::int64_t nodes, double seconds,
                                               std::int64_t* offsets) {
  try {
    return static_cast<Search*>(search)->run(height, nodes, seconds, offsets);
  } catch (...) {
    return kBroken;
  }
}

PADDOCK_EXPORT std::int64_t paddock_search_nodes(void* search) { return static_cast<Search*>(search)->nodes(); }

PADDOCK_EXPORT void paddock_search_free(void* search) { delete static_cast<Search*>(search); }
