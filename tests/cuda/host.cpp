// Runs the kernels of one .cu file, named by KV_SOURCE, as shim.h has it.
#include <algorithm>
#include <csetjmp>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include <csignal>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include "shim.h"

namespace shim {

Thread* here;
dim3 block_index, block_size, grid_size;

namespace {

constexpr size_t STACK = 128 * 1024;
constexpr size_t SHARED = 48 * 1024;
// A whole number of pages, whatever their size here.
constexpr size_t FENCE = 64 * 1024;
// 32 bits that are NaN as a float and far out of range as an index.
constexpr uint32_t POISON = 0x7fc0dead;

enum class State { Ready, AtBlock, AtWarp, Done };

struct Fibre : Thread {
  // Where it goes on. Its context is made once: from one block, and one launch, to the next it stays on its stack.
  jmp_buf at;
  bool started = false;
  State state = State::Ready;
  int line = 0;
  Meeting meeting = Meeting::Shuffle;
  uint32_t mask = 0, value = 0, result = 0;
  unsigned source = 0;
};

// A piece of shared memory, by where it is asked for.
struct Piece {
  const char* file;
  int line;
  const char* name;
  size_t bytes;
  unsigned char* memory;
  bool is_in_use;

  bool is_of(const char* other_file, int other_line, const char* other_name, size_t other_bytes) const {
    const auto same = [](const char* a, const char* b) { return a == b || std::strcmp(a, b) == 0; };
    return line == other_line && bytes == other_bytes && same(name, other_name) && same(file, other_file);
  }
};

struct Launch {
  Entry entry;
  void** arguments;
  size_t threads;
  size_t used = 0;
  std::string fault;
};

Launch* launch;
jmp_buf scheduler;
char* stacks;
std::vector<Fibre> fibres;
std::vector<Piece> pieces;

std::map<std::string, Entry>& entries() {
  static std::map<std::string, Entry> all;
  return all;
}

Fibre& current() { return *static_cast<Fibre*>(here); }

void leave() { _longjmp(scheduler, 1); }

void wait(State state) {
  Fibre& fibre = current();
  fibre.state = state;
  if (_setjmp(fibre.at) == 0) leave();
}

void run_fibre() {
  for (;;) {
    launch->entry(launch->arguments);
    wait(State::Done);
  }
}

void resume(Fibre& fibre) {
  here = &fibre;
  if (_setjmp(scheduler) != 0) return;
  if (fibre.started) _longjmp(fibre.at, 1);
  fibre.started = true;
  ucontext_t start;
  getcontext(&start);
  start.uc_stack.ss_sp = stacks + (&fibre - fibres.data()) * STACK;
  start.uc_stack.ss_size = STACK;
  start.uc_link = nullptr;
  makecontext(&start, run_fibre, 0);
  setcontext(&start);
}

std::string where(const Fibre& fibre) {
  return "thread " + std::to_string(fibre.index.x) + " at line " + std::to_string(fibre.line);
}

// The kernel that this thread of the process runs, if it runs one.
thread_local const char* running;
struct sigaction handlers[2];

struct Running {
  explicit Running(const char* name) { running = name; }
  ~Running() { running = nullptr; }
};

// Says which kernel it was, and lets what was there before end the process.
void on_fault(int signal, siginfo_t*, void*) {
  if (running != nullptr) {
    char line[256];
    const int n = std::snprintf(line, sizeof line, "kernel %s: an address behind an array, or nowhere: %s of block %u,%u,%u\n",
                                running, where(current()).c_str(), block_index.x, block_index.y, block_index.z);
    if (write(STDERR_FILENO, line, static_cast<size_t>(n)) < 0) std::abort();
  }
  sigaction(signal, &handlers[signal == SIGBUS], nullptr);
}

void watch_faults() {
  struct sigaction action = {};
  action.sa_sigaction = on_fault;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  sigaction(SIGSEGV, &action, &handlers[0]);
  sigaction(SIGBUS, &action, &handlers[1]);
}

// Lets go every group of lanes of a warp, `first` being its first thread, that has met. Whether there was one.
bool release_warp(size_t first) {
  bool any = false;
  Fibre* const lanes = &fibres[first];
  const size_t n = std::min<size_t>(32, launch->threads - first);
  for (size_t i = 0; i < n; ++i) {
    const Fibre& one = lanes[i];
    if (one.state != State::AtWarp) continue;
    const uint32_t mask = one.mask;
    const auto is_in = [mask](size_t lane) { return (mask >> lane & 1) != 0; };
    bool complete = is_in(i);
    uint32_t votes = 0;
    for (size_t j = 0; j < n; ++j) {
      if (!is_in(j)) continue;
      const Fibre& other = lanes[j];
      complete = complete && other.state == State::AtWarp && other.mask == mask && other.meeting == one.meeting &&
                 other.line == one.line;
      votes |= static_cast<uint32_t>(other.value != 0) << j;
    }
    if (!complete) continue;
    for (size_t j = 0; j < n; ++j) {
      if (!is_in(j)) continue;
      Fibre& member = lanes[j];
      member.result = votes;
      if (member.meeting == Meeting::Shuffle) {
        const bool there = member.source < n && is_in(member.source);
        if (!there) launch->fault = "an exchange reads a lane that takes no part: " + where(member);
        member.result = there ? lanes[member.source].value : POISON;
      }
      member.state = State::Ready;
    }
    any = true;
  }
  return any;
}

// Lets the block go on if all its threads are at one barrier.
bool release_block() {
  for (size_t i = 0; i < launch->threads; ++i) {
    if (fibres[i].state != State::AtBlock || fibres[i].line != fibres[0].line) return false;
  }
  for (size_t i = 0; i < launch->threads; ++i) fibres[i].state = State::Ready;
  return true;
}

// Orders of warps, and of lanes in a warp: as they are numbered, the other way round, or shuffled by the schedule's number.
std::vector<size_t> order(size_t n, unsigned schedule) {
  std::vector<size_t> all(n);
  for (size_t i = 0; i < n; ++i) all[i] = schedule == 1 ? n - 1 - i : i;
  uint64_t state = schedule * 0x9e3779b97f4a7c15ull;
  for (size_t i = n - 1; schedule > 1 && i > 0; --i) {
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    std::swap(all[i], all[(state >> 33) % (i + 1)]);
  }
  return all;
}

void run_block(unsigned schedule) {
  const size_t n = launch->threads;
  for (Piece& piece : pieces) piece.is_in_use = false;
  launch->used = 0;
  for (size_t i = 0; i < n; ++i) {
    Fibre& fibre = fibres[i];
    fibre.index = {static_cast<unsigned>(i % block_size.x), static_cast<unsigned>(i / block_size.x % block_size.y),
                   static_cast<unsigned>(i / block_size.x / block_size.y)};
    fibre.lane = i % 32;
    fibre.warp = i / 32;
    fibre.state = State::Ready;
  }
  const std::vector<size_t> warps = order((n + 31) / 32, schedule), lanes = order(32, schedule);
  size_t done = 0;
  while (done < n) {
    // A warp runs as far ahead of the others as barriers let it.
    for (size_t warp : warps) {
      do {
        for (size_t lane : lanes) {
          const size_t i = warp * 32 + lane;
          if (i < n && fibres[i].state == State::Ready) resume(fibres[i]);
          if (!launch->fault.empty()) return;
        }
      } while (release_warp(warp * 32));
    }
    done = 0;
    for (size_t i = 0; i < n; ++i) done += fibres[i].state == State::Done;
    if (done == n || release_block()) continue;
    for (size_t i = 0; i < n; ++i) {
      const Fibre& fibre = fibres[i];
      if (fibre.state != State::AtBlock && fibre.state != State::AtWarp) continue;
      launch->fault = std::string(fibre.state == State::AtBlock ? "a barrier" : "a meeting of a warp") +
                      " that not all reach: " + where(fibre) + ", " + std::to_string(done) + " of " +
                      std::to_string(n) + " threads have ended";
      return;
    }
  }
}

}  // namespace

void meet_block(int line) {
  current().line = line;
  wait(State::AtBlock);
}

uint32_t meet_warp(Meeting meeting, uint32_t mask, uint32_t value, unsigned source, int line) {
  Fibre& fibre = current();
  fibre.meeting = meeting;
  fibre.mask = mask;
  fibre.value = value;
  fibre.source = source;
  fibre.line = line;
  wait(State::AtWarp);
  return current().result;
}

// Memory whose end cannot be passed: what lies behind its last 16 bytes can be neither read nor written.
unsigned char* fenced(size_t bytes) {
  const size_t roomy = (bytes + FENCE - 1) / FENCE * FENCE + 2 * FENCE;
  void* memory = mmap(nullptr, roomy, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return nullptr;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(memory) + roomy) / FENCE * FENCE - FENCE;
  if (mprotect(reinterpret_cast<void*>(end), FENCE, PROT_NONE) != 0) return nullptr;
  return reinterpret_cast<unsigned char*>(end - (bytes + 15) / 16 * 16);
}

void* shared(const char* file, int line, const char* name, size_t bytes) {
  auto piece = std::find_if(pieces.begin(), pieces.end(),
                            [&](const Piece& other) { return other.is_of(file, line, name, bytes); });
  if (piece == pieces.end()) {
    unsigned char* const memory = fenced(bytes);
    if (memory == nullptr) fault("no shared memory", line);
    piece = pieces.insert(piece, {file, line, name, bytes, memory, false});
  }
  if (!piece->is_in_use) {
    launch->used = (launch->used + 15) / 16 * 16 + bytes;
    if (launch->used > SHARED) fault("more than 48 KiB of shared memory", line);
    for (size_t i = 0; i < bytes; i += 4) std::memcpy(piece->memory + i, &POISON, std::min<size_t>(4, bytes - i));
    piece->is_in_use = true;
  }
  return piece->memory;
}

void fault(const char* what, int line) {
  launch->fault = std::string(what) + ": thread " + std::to_string(current().index.x) + ", line " + std::to_string(line);
  leave();
  std::abort();
}

Register::Register(const char* name, Entry entry) { entries()[name] = entry; }

}  // namespace shim

#define KV_HOST
#include KV_SOURCE

// Runs a kernel; `arguments` points at each argument. 0, or 1 with a sentence in `message`. One launch at a time.
extern "C" int kv_launch(const char* name, const unsigned* grid, const unsigned* block, void** arguments,
                         unsigned schedule, char* message, size_t message_size) {
  using namespace shim;
  static const bool is_watched = (watch_faults(), true);
  (void)is_watched;
  const Running of_this_launch(name);
  Launch here_and_now;
  launch = &here_and_now;
  const auto entry = entries().find(name);
  if (entry == entries().end()) {
    std::snprintf(message, message_size, "no kernel of this name");
    return 1;
  }
  launch->entry = entry->second;
  launch->arguments = arguments;
  grid_size = {grid[0], grid[1], grid[2]};
  block_size = {block[0], block[1], block[2]};
  const size_t n = launch->threads = static_cast<size_t>(block[0]) * block[1] * block[2];
  if (fibres.size() < n) {
    if (stacks != nullptr) munmap(stacks, fibres.size() * STACK);
    fibres.clear();
    void* memory = mmap(nullptr, n * STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) {
      stacks = nullptr;
      std::snprintf(message, message_size, "no memory for stacks");
      return 1;
    }
    stacks = static_cast<char*>(memory);
    fibres = std::vector<Fibre>(n);
  }
  for (block_index.z = 0; block_index.z < grid[2]; ++block_index.z) {
    for (block_index.y = 0; block_index.y < grid[1]; ++block_index.y) {
      for (block_index.x = 0; block_index.x < grid[0]; ++block_index.x) {
        run_block(schedule);
        if (!launch->fault.empty()) {
          // Some are in the middle of it, and begin anew.
          for (Fibre& fibre : fibres) fibre.started = false;
          std::snprintf(message, message_size, "block %u,%u,%u: %s", block_index.x, block_index.y, block_index.z,
                        launch->fault.c_str());
          return 1;
        }
      }
    }
  }
  return 0;
}
