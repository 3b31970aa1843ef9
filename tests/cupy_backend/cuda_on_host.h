// Runs CUDA kernels on the CPU: test equipment, no part of the backend.
//
// A thread of the GPU is a fiber here, with a stack of its own. A block's fibers run one after the
// other, each until it waits at __syncthreads() or ends; when all wait at the same one, all go on.
// What would be wrong on a GPU only now and then is made wrong always, or noticed:
//
// - Every launch runs three times, with the threads in order, in reverse and shuffled, and must
//   give the same bits: a missing barrier, or one block that reads another's results, does not.
// - Shared memory holds no value when a block begins: NaN in the first run, something huge in the
//   next.
// - Arrays and dynamic shared memory end, or begin, at a page that nobody may touch.
// - -fsanitize reports indices beyond fixed arrays, shared ones too, and integers that overflow.
// - A barrier that not all threads of the block reach is an error, as is a shuffle or a tensor core's
//   instruction that not all lanes of the warp reach, and as are arguments of another
//   number, size or kind than the kernel's, which CuPy would pass on unseen.
//
// Not seen: races between threads that give the same bits in all three orders, reads of an output
// array before it is written (unless its values matter), misaligned access, too many registers.
#pragma once
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

struct dim3 {
    unsigned x = 1, y = 1, z = 1;
};

namespace host {

// ---- where we are, and what went wrong ----

enum State { READY, AT_BLOCK_BARRIER, AT_WARP_BARRIER, DONE };

struct Fiber {
    dim3 thread;
    unsigned number = 0;  // within the block
    State state = DONE;
    const char* file = "";  // of the barrier where it waits
    int line = 0;
    bool started = false;
    ucontext_t beginning;
    jmp_buf place;
    char exchanged[48];  // what it offers to the other lanes of its warp
};

inline std::vector<Fiber> fibers;
inline Fiber* current = nullptr;  // null: no fiber runs
inline dim3 grid, block, block_index;
inline jmp_buf scheduler, launcher;
inline char message[600];

[[noreturn]] inline void fail(const char* format, ...) {
    int used = 0;
    if (current) {
        const dim3 &b = block_index, &t = current->thread;
        used = snprintf(message, sizeof message, "block (%u, %u, %u), thread (%u, %u, %u): ", b.x,
                        b.y, b.z, t.x, t.y, t.z);
    }
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(message + used, sizeof message - used, format, arguments);
    va_end(arguments);
    _longjmp(launcher, 1);
}

// ---- memory that ends, or begins, at a forbidden page ----

struct Guarded {
    char *mapping, *data;
    size_t length, room, page = sysconf(_SC_PAGESIZE);
    int argument;  // which of the kernel's; -1: none, but dynamic shared memory

    Guarded(size_t bytes, bool at_the_end, int argument) : length(bytes), argument(argument) {
        room = (bytes + page - 1) / page * page;
        mapping =
            (char*)mmap(nullptr, room + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (room) mprotect(mapping + page, room, PROT_READ | PROT_WRITE);
        data = mapping + page + (at_the_end ? room - bytes : 0);
    }
    Guarded(const Guarded&) = delete;
    ~Guarded() { munmap(mapping, room + 2 * page); }
    bool forbids(const char* p) const {
        return mapping <= p && p < mapping + room + 2 * page && (p < data || p >= data + length);
    }
};

inline std::vector<std::unique_ptr<Guarded>> guarded;

inline void on_fault(int signal, siginfo_t* info, void*) {
    for (auto& memory : guarded) {
        ptrdiff_t byte = (char*)info->si_addr - memory->data;
        if (!memory->forbids((char*)info->si_addr)) continue;
        if (memory->argument < 0)
            fail("access to dynamic shared memory at byte %td of its %zu", byte, memory->length);
        fail("access to argument %d at byte %td of its %zu", memory->argument, byte,
             memory->length);
    }
    fail("access to memory that is no argument");
}

// Hears of bad addresses as long as it lives.
struct Watch {
    static constexpr int SIGNALS[] = {SIGSEGV, SIGBUS};
    struct sigaction before[2];
    stack_t stack_before;
    std::vector<char> stack = std::vector<char>(64 << 10);

    Watch() {
        stack_t own = {};
        own.ss_sp = stack.data(), own.ss_size = stack.size();
        sigaltstack(&own, &stack_before);
        struct sigaction action = {};
        action.sa_sigaction = on_fault;
        action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
        for (int i = 0; i < 2; i++) sigaction(SIGNALS[i], &action, &before[i]);
    }
    ~Watch() {
        for (int i = 0; i < 2; i++) sigaction(SIGNALS[i], &before[i], nullptr);
        sigaltstack(&stack_before, nullptr);
    }
};

// ---- shared memory ----

struct Region {
    void* begin;
    size_t size;
};
inline std::vector<Region> static_shared;
inline int poison;
inline Guarded* dynamic_shared = nullptr;

template <typename Array>
struct Shared {
    alignas(32) Array value;
    Shared() {
        static_shared.push_back({&value, sizeof value});
        memset((void*)&value, poison, sizeof value);
    }
};

inline void poison_shared_memory() {
    for (Region& region : static_shared) memset(region.begin, poison, region.size);
    memset(dynamic_shared->data, poison, dynamic_shared->length);
}

// ---- fibers ----

constexpr size_t STACK = 64 << 10;
inline char* stacks = nullptr;
inline void (*body)(void*);
inline void* body_arguments;

// A fiber begins by setcontext; from then on it is left and entered by longjmp, which needs no
// system call.
[[gnu::noinline]] inline void leave(Fiber& fiber) {
    if (!_setjmp(fiber.place)) _longjmp(scheduler, 1);
}

inline void live() {
    for (;;) {  // block after block
        body(body_arguments);
        current->state = DONE;
        leave(*current);
    }
}

[[gnu::noinline]] inline void enter(Fiber& fiber) {
    current = &fiber;
    if (!_setjmp(scheduler)) {
        if (fiber.started) _longjmp(fiber.place, 1);
        fiber.started = true;
        setcontext(&fiber.beginning);
    }
    current = nullptr;
}

inline void wait(State state, const char* file, int line) {
    current->state = state, current->file = file, current->line = line;
    leave(*current);
}

inline void make_fibers(unsigned count) {
    constexpr size_t MOST = 1024;
    if (!stacks)
        stacks = (char*)mmap(nullptr, MOST * STACK, PROT_READ | PROT_WRITE,
                             MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    fibers.reserve(MOST);  // they must not move: a context points into itself
    for (unsigned i = fibers.size(); i < count; i++) {
        Fiber& fiber = fibers.emplace_back();
        getcontext(&fiber.beginning);
        fiber.beginning.uc_stack.ss_sp = stacks + i * STACK;
        fiber.beginning.uc_stack.ss_size = STACK;
        makecontext(&fiber.beginning, live, 0);
    }
}

// ---- the schedule of a block ----

struct Schedule {
    const char* name;
    int poison;
    bool arrays_at_the_end;
};
inline constexpr Schedule SCHEDULES[] = {
    {"forward", 0xFF, true}, {"reverse", 0x7F, false}, {"shuffled", 0xFF, true}};

inline bool release_warps(unsigned count) {
    bool released = false;
    for (unsigned begin = 0; begin < count; begin += 32) {
        auto first = fibers.begin() + begin, last = fibers.begin() + std::min(count, begin + 32);
        auto waits_too = [&](Fiber& f) {
            return f.state == AT_WARP_BARRIER && f.line == first->line && !strcmp(f.file, first->file);
        };
        if (!std::all_of(first, last, waits_too)) continue;
        for (auto f = first; f != last; f++) f->state = READY;
        released = true;
    }
    return released;
}

inline void release_block(unsigned count) {
    Fiber& first = fibers[0];
    for (unsigned i = 0; i < count; i++) {
        Fiber& f = fibers[i];
        if (f.state == first.state && f.line == first.line && !strcmp(f.file, first.file)) continue;
        Fiber &waits = f.state == DONE ? first : f, &other = f.state == DONE ? f : first;
        current = &waits;
        if (other.state == DONE)
            fail("waits at line %d of %s, but thread %u has ended", waits.line, waits.file,
                 other.number);
        fail("waits at line %d of %s, but thread %u at line %d of %s", waits.line, waits.file,
             other.number, other.line, other.file);
    }
    for (unsigned i = 0; i < count; i++) fibers[i].state = READY;
}

inline void run_block(int schedule, std::mt19937& random) {
    unsigned count = block.x * block.y * block.z;
    std::vector<unsigned> order(count);
    std::iota(order.begin(), order.end(), 0u);
    if (schedule == 1) std::reverse(order.begin(), order.end());
    for (unsigned i = 0; i < count; i++) {
        fibers[i].thread = {i % block.x, i / block.x % block.y, i / (block.x * block.y)};
        fibers[i].number = i, fibers[i].state = READY;
    }
    poison_shared_memory();
    for (;;) {
        if (schedule == 2) std::shuffle(order.begin(), order.end(), random);
        for (unsigned i : order)
            if (fibers[i].state == READY) enter(fibers[i]);
        if (std::all_of(order.begin(), order.end(),
                        [](unsigned i) { return fibers[i].state == DONE; }))
            return;
        if (!release_warps(count)) release_block(count);
    }
}

inline void run_grid(int schedule) {
    std::mt19937 random(1);
    unsigned count = grid.x * grid.y * grid.z;
    poison = SCHEDULES[schedule].poison;
    make_fibers(block.x * block.y * block.z);
    for (unsigned n = 0; n < count; n++) {
        unsigned i = schedule == 1 ? count - 1 - n : n;
        block_index = {i % grid.x, i / grid.x % grid.y, i / (grid.x * grid.y)};
        run_block(schedule, random);
    }
}

// ---- launching ----

struct Argument {
    char* data;
    size_t bytes, item;
    char kind;  // NumPy's: f, i, u, V ...
    bool array;
};

template <typename T>
bool is_of_type(const Argument& a) {
    const char* kinds = std::is_floating_point_v<T> ? "f" : std::is_integral_v<T> ? "iub" : "V";
    return strchr(kinds, a.kind) && a.item == sizeof(T);
}

// Find or make the guarded copy of an array; two arguments may be the same array, not parts of one.
inline Guarded* home(const Argument* a, int number, bool at_the_end, std::vector<Guarded*>& homes) {
    Guarded* found = nullptr;
    const Argument& own = a[number];
    for (int i = 0; i < number; i++) {
        bool apart =
            !homes[i] || own.data + own.bytes <= a[i].data || a[i].data + a[i].bytes <= own.data;
        if (apart) continue;
        if (own.data != a[i].data || own.bytes != a[i].bytes)
            fail("arguments %d and %d overlap", i, number);
        found = homes[i];
    }
    if (found) return found;
    guarded.push_back(std::make_unique<Guarded>(own.bytes, at_the_end, number));
    memcpy(guarded.back()->data, own.data, own.bytes);
    return guarded.back().get();
}

template <typename P>
P value_of(const Argument* a, int number, bool at_the_end, std::vector<Guarded*>& homes) {
    using T = std::remove_cv_t<std::remove_pointer_t<P>>;
    const Argument& own = a[number];
    if (own.array != std::is_pointer_v<P> || (own.data && !is_of_type<T>(own)))
        fail(
            "argument %d is %s of kind %c and %zu bytes an item, which the kernel does not take "
            "there",
            number, own.array ? "an array" : "a value", own.kind, own.item);
    homes.push_back(own.array && own.data ? home(a, number, at_the_end, homes) : nullptr);
    if constexpr (std::is_pointer_v<P>)
        return homes.back() ? (P)homes.back()->data : nullptr;
    else
        return *(P*)own.data;
}

template <typename... P, size_t... I>
void run(void (*kernel)(P...), int schedule, size_t shared, const Argument* a,
         std::vector<Guarded*>& homes, std::index_sequence<I...>) {
    bool at_the_end = SCHEDULES[schedule].arrays_at_the_end;
    guarded.clear();
    guarded.push_back(std::make_unique<Guarded>(shared, true, -1));
    dynamic_shared = guarded.back().get();
    std::tuple<P...> values{value_of<P>(a, I, at_the_end, homes)...};
    auto call = [&] { kernel(std::get<I>(values)...); };
    body = [](void* f) { (*(decltype(call)*)f)(); };
    body_arguments = &call;
    run_grid(schedule);
}

// Run a kernel in every order; give null, or what is wrong with it.
template <typename... P>
const char* launch(void (*kernel)(P...), const unsigned* g, const unsigned* b, size_t shared,
                   const Argument* a, int count) {
    grid = {g[0], g[1], g[2]}, block = {b[0], b[1], b[2]};
    static std::vector<std::vector<char>> results;
    results.clear();
    Watch watch;
    if (_setjmp(launcher)) {
        fibers.clear();  // they stand in the middle of something
        current = nullptr;
        return message;
    }
    if (count != sizeof...(P)) fail("%d arguments for a kernel of %zu", count, sizeof...(P));
    constexpr bool WRITTEN[] = {
        (std::is_pointer_v<P> && !std::is_const_v<std::remove_pointer_t<P>>)..., false};
    for (int schedule = 0; schedule < 3; schedule++) {
        std::vector<Guarded*> homes;
        run(kernel, schedule, shared, a, homes, std::index_sequence_for<P...>{});
        for (int i = 0; i < count; i++) {
            Guarded* h = homes[i];
            if (!h || !WRITTEN[i]) continue;
            if (!schedule) results.resize(count), results[i].assign(h->data, h->data + h->length);
            if (memcmp(results[i].data(), h->data, h->length))
                fail(
                    "argument %d differs with the threads in %s order: a barrier is missing, "
                    "or memory is read before it is written",
                    i, SCHEDULES[schedule].name);
        }
    }
    for (size_t i = 0; i < results.size(); i++)
        if (!results[i].empty()) memcpy(a[i].data, results[i].data(), results[i].size());
    guarded.clear();
    return nullptr;
}

// ---- warps ----

template <typename T>
T exchange(T value, unsigned lane, unsigned mask, const char* file, int line) {
    static_assert(sizeof(T) <= sizeof current->exchanged);
    unsigned warp = current->number / 32 * 32;
    if (mask != ~0u) fail("a shuffle at line %d of %s without all lanes", line, file);
    memcpy(current->exchanged, &value, sizeof value);
    wait(AT_WARP_BARRIER, file, line);
    if (lane < 32 && warp + lane < block.x * block.y * block.z)
        memcpy(&value, fibers[warp + lane].exchanged, sizeof value);
    wait(AT_WARP_BARRIER, file, line);
    return value;
}

// ---- tensor cores: PTX ISA, "Warp Level Matrix Multiply-Accumulate Instructions" ----

inline float float_of(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

inline uint32_t bits_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

// 1 sign, 5 exponent and 10 mantissa bits; halves to even, infinite from 65520 on.
inline uint32_t to_f16(float x) {
    uint32_t sign = bits_of(x) >> 16 & 0x8000u;
    if (std::isnan(x)) return 0x7FFFu;
    x = std::fabs(x);
    if (x >= 65520) return sign | 0x7C00u;
    int exponent = x < 0x1p-14f ? -14 : std::ilogb(x);
    auto steps = (uint32_t)std::nearbyint(std::ldexp(x, 10 - exponent));  // of the last bit
    return sign | ((uint32_t)(exponent + 14) * 1024 + steps);  // a carry goes into the exponent
}

inline float from_f16(uint32_t bits) {
    int exponent = bits >> 10 & 31, mantissa = bits & 1023;
    float x = exponent == 31  ? (mantissa ? NAN : INFINITY)
              : exponent == 0 ? std::ldexp((float)mantissa, -24)
                              : std::ldexp((float)(mantissa + 1024), exponent - 25);
    return bits & 0x8000u ? -x : x;
}

// cvt.HOW: a float's bits in another format.
inline uint32_t convert(const char* how, float x) {
    uint32_t bits = bits_of(x);
    if (!strcmp(how, "rn.f16.f32")) return to_f16(x);
    if (!strcmp(how, "rn.bf16.f32"))  // the upper half of a float
        return std::isnan(x) ? 0x7FFFu : (bits + 0x7FFFu + (bits >> 16 & 1)) >> 16;
    if (!strcmp(how, "rna.tf32.f32"))  // a float without its lowest 13 bits
        return std::isnan(x) ? bits : (bits + 0x1000u) & ~0x1FFFu;
    fail("no instruction cvt.%s", how);
}

// A value in a word of a fragment, as the tensor core sees it.
inline float decoded(const char* type, uint32_t word, int part) {
    if (!strcmp(type, "tf32")) return float_of(word & ~0x1FFFu);  // it ignores the lowest bits
    uint32_t half = word >> 16 * part & 0xFFFFu;
    return !strcmp(type, "bf16") ? float_of(half << 16) : from_f16(half);
}

// Of element i of a lane's fragment, where it stands in the matrix. A is 16 x depth, B depth x 8, D
// 16 x 8; `packed` elements share a word.
struct Position {
    int row, column;
};
inline Position in_a(int lane, int i, int packed) {
    int word = i / packed;
    return {lane / 4 + word % 2 * 8, (lane % 4 + word / 2 * 4) * packed + i % packed};
}
inline Position in_b(int lane, int i, int packed) {
    return {(lane % 4 + i / packed * 4) * packed + i % packed, lane / 4};
}
inline Position in_d(int lane, int i) { return {lane / 4 + i / 2 * 8, lane % 4 * 2 + i % 2}; }

// The other way round: who holds what stands there. A smaller depth has the first elements.
struct Holder {
    int lane, element;
    Holder after(int others) const { return {lane, others + element}; }
};
struct Holders {
    Holder a[16][16], b[16][8];
    Holders(int packed) {
        for (int lane = 0; lane < 32; lane++)
            for (int i = 0; i < 4 * packed; i++) {
                Position in_left = in_a(lane, i, packed), in_right = in_b(lane, i / 2, packed);
                a[in_left.row][in_left.column] = {lane, i};
                b[in_right.row][in_right.column] = {lane, i / 2};
            }
    }
};

// mma.sync.aligned.HOW: D += A * B, of which each lane has a fragment of each.
inline void mma(const char* how, std::initializer_list<float*> d, std::initializer_list<uint32_t> a,
                std::initializer_list<uint32_t> b, const char* file, int line) {
    int depth = 0, packed;
    char type[8] = "", other[8] = "", end = 0;
    sscanf(how, "m16n8k%d.row.col.f32.%7[a-z0-9].%7[a-z0-9].f3%c", &depth, type, other, &end);
    packed = strcmp(type, "tf32") ? 2 : 1;
    bool known = depth == 8 || (depth == 16 && packed == 2);
    known &= !strcmp(type, "tf32") || !strcmp(type, "bf16") || !strcmp(type, "f16");
    if (!known || strcmp(type, other) || end != '2') fail("no instruction mma.sync.aligned.%s", how);
    if (a.size() * 2 * packed != (size_t)depth || b.size() * 2 != a.size())
        fail("%zu and %zu registers for mma.sync.aligned.%s", a.size(), b.size(), how);

    float own[12], *next = own;
    for (uint32_t word : a)
        for (int part = 0; part < packed; part++) *next++ = decoded(type, word, part);
    int own_of_a = next - own;
    for (uint32_t word : b)
        for (int part = 0; part < packed; part++) *next++ = decoded(type, word, part);
    memcpy(current->exchanged, own, sizeof own);
    wait(AT_WARP_BARRIER, file, line);

    static const Holders holders[] = {Holders(1), Holders(2)};
    const Holders& of = holders[packed - 1];
    const Fiber* warp = &fibers[current->number / 32 * 32];
    auto held = [&](Holder h) { return ((const float*)warp[h.lane].exchanged)[h.element]; };
    int i = 0;
    for (float* sum : d) {
        Position at = in_d(current->number % 32, i++);
        for (int k = 0; k < depth; k++)
            *sum += held(of.a[at.row][k]) * held(of.b[k][at.column].after(own_of_a));
    }
    wait(AT_WARP_BARRIER, file, line);
}

}  // namespace host

// ---- what -fsanitize calls ----

struct SourceLocation {
    const char* file;
    uint32_t line, column;
};
#define REPORT(name, what)                                                                \
    extern "C" [[noreturn]] void __ubsan_handle_##name##_abort(SourceLocation* at, ...) { \
        host::fail(what " at line %u of %s", at->line, at->file);                         \
    }
REPORT(out_of_bounds, "an index beyond the array")
REPORT(add_overflow, "a sum overflows")
REPORT(sub_overflow, "a difference overflows")
REPORT(mul_overflow, "a product overflows")
REPORT(negate_overflow, "a negation overflows")
REPORT(divrem_overflow, "a division by zero")
REPORT(shift_out_of_bounds, "a shift by too many bits")

// ---- CUDA's words ----

#define __global__
#define __device__ inline
#define __host__
#define __forceinline__
#define __launch_bounds__(...)
#define SHARED(type, name, extent)                \
    static host::Shared<type extent> name##_home; \
    auto& name = name##_home.value
#define DYNAMIC_SHARED(type, name) type* name = reinterpret_cast<type*>(host::dynamic_shared->data)
#define threadIdx (host::current->thread)
#define blockIdx host::block_index
#define blockDim host::block
#define gridDim host::grid
#define __syncthreads() host::wait(host::AT_BLOCK_BARRIER, __FILE__, __LINE__)
#define __syncwarp() host::wait(host::AT_WARP_BARRIER, __FILE__, __LINE__)
#define __shfl_xor_sync(mask, value, bits) \
    host::exchange(value, (host::current->number % 32) ^ (bits), mask, __FILE__, __LINE__)
#define __shfl_down_sync(mask, value, by) \
    host::exchange(value, host::current->number % 32 + (by), mask, __FILE__, __LINE__)
#define CONVERT(how, register, bits, x) bits = host::convert(how, x)
#define MMA(how, d0, d1, d2, d3, a0, a1, a2, a3, b0, b1) \
    host::mma(how, {&d0, &d1, &d2, &d3}, {a0, a1, a2, a3}, {b0, b1}, __FILE__, __LINE__)
#define MMA_HALF(how, d0, d1, d2, d3, a0, a1, b0) \
    host::mma(how, {&d0, &d1, &d2, &d3}, {a0, a1}, {b0}, __FILE__, __LINE__)
using std::max;
using std::min;

// The kernel under a name that Python can look up; Python writes one for each instance.
#define KERNEL(name, ...)                                                         \
    extern "C" __attribute__((visibility("default"))) const char* name(           \
        const unsigned* grid, const unsigned* block, size_t shared,               \
        const host::Argument* arguments, int count) {                             \
        return host::launch(&__VA_ARGS__, grid, block, shared, arguments, count); \
    }
