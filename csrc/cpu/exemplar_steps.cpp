// exemplar_steps: forward, backward and Adam of small attention-only exemplar models, many steps a call.
//
// A step is a chain of phases: tokens are found; embedded; slices of kLanes examples go to
// their hidden states; chunks of labels to logits; the loss; the chunks again, where the unembedding's gradient is
// formed and used up; the slices and the tokens backward; the other weights. A phase is cut into units by the shapes
// alone, and every sum has one owner and one order: the result does not depend on the number of threads. A thread has a
// member for itself while there are enough of them; the rest are shared by all threads.
#include <cmath>

#include "cpu/exemplar_slice.h"
#include "cpu/exemplar_team.h"
#include "cpu/exemplar_tokens.h"
#include "cpu/exemplar_update.h"

namespace icl::ICL_ISA {
namespace {

// Numbers below 1e-38 are 0 while this lives: moments that fade would make every operation a hundred times slower.
struct NoDenormals {
#if defined(__x86_64__)
  const unsigned before = _mm_getcsr();
  NoDenormals() { _mm_setcsr(before | 0x8040); }
  ~NoDenormals() { _mm_setcsr(before); }
#else
  NoDenormals() {}
#endif
};

// Logits of a chunk of labels, kept as exp(logit - largest of the chunk)
void chunk_forward(const Sizes& sizes, const Member& member, const Work& work, const Sequences& sequences,
                   int64_t chunk) {
  const int64_t begin = chunk * kLabelChunk, end = min(begin + kLabelChunk, sizes.labels), n = sizes.lanes;
  float* logits = work.logits + begin * n;
  const int64_t known = clamp(member.known, begin, end);
  multiply(known - begin, n, sizes.width, {member.value(kUnembed) + begin * sizes.width, sizes.width, 1},
           {work.hidden, n}, {logits, n});
  for (int64_t j = 0; j < n; j += W) {
    vf top = splat(-INFINITY);
    for (int64_t v = begin; v < end; ++v) {
      float* at = logits + (v - begin) * n + j;
      const vf logit = v < known ? load(at) + splat(member.value(kUnembedBias)[v]) : splat(kNoLabel);
      top = max(logit, top);
      store(at, logit);
    }
    store(work.top + chunk * n + j, top);
  }
  for (int64_t b = 0; b < sizes.batch; ++b) {
    const int64_t target = sequences.target[b] - begin;
    if (target >= 0 && target < end - begin) work.target_logit[b] = logits[target * n + b];
  }
  for (int64_t j = 0; j < n; j += W) {
    const vf top = load(work.top + chunk * n + j);
    store(work.sum + chunk * n + j, sum_over(end - begin, [&](int64_t v) {
            const vf term = exp_of_difference(load(logits + v * n + j) - top);
            store(logits + v * n + j, term);
            return term;
          }));
  }
}

// The losses of W examples, and by what the chunks' exponentials are multiplied in their gradients
void merge_chunks(const Sizes& sizes, const Work& work, int64_t j) {
  const int64_t n = sizes.lanes;
  vf top = load(work.top + j), total{};
  for (int64_t i = 1; i < sizes.chunks; ++i) top = max(load(work.top + i * n + j), top);
  for (int64_t i = 0; i < sizes.chunks; ++i) {
    const vf share = exp(load(work.top + i * n + j) - top);
    total += load(work.sum + i * n + j) * share;
    store(work.scale + i * n + j, share);
  }
  const vf factor = splat(1.0f) / (total * splat(float(sizes.batch)));
  for (int64_t i = 0; i < sizes.chunks; ++i) store(work.scale + i * n + j, load(work.scale + i * n + j) * factor);
  for (int64_t b = j; b < j + W && b < sizes.batch; ++b)
    work.loss[b] = (top[b - j] - work.target_logit[b]) + logf(total[b - j]);
}

// Gradients of a chunk's logits; what they give to the hidden states; the chunk's unembedding, updated
void chunk_backward(const Sizes& sizes, const Member& member, const Work& work, const Sequences& sequences,
                    const Adam& adam, int64_t chunk, float* gradient) {
  const int64_t begin = chunk * kLabelChunk, end = min(begin + kLabelChunk, sizes.labels), n = sizes.lanes;
  const int64_t known = clamp(member.known, begin, end), c = sizes.width;
  float* d = work.logits + begin * n;
  for (int64_t j = 0; j < n; j += W) {
    const vf scale = load(work.scale + chunk * n + j);
    for (int64_t v = 0; v < known - begin; ++v) store(d + v * n + j, load(d + v * n + j) * scale);
  }
  for (int64_t b = 0; b < sizes.batch; ++b) {
    const int64_t target = sequences.target[b] - begin;
    // p - 1 without the cancellation when p is near 1
    if (target >= 0 && target < known - begin) d[target * n + b] = expm1f(-work.loss[b]) / float(sizes.batch);
  }
  for (int64_t v = 0; v < known - begin; ++v)
    for (int64_t b = sizes.batch; b < n; ++b) d[v * n + b] = 0;
  float* dhidden = work.dhidden + chunk * c * n;
  std::memset(dhidden, 0, c * n * sizeof(float));
  multiply(c, n, known - begin, {member.value(kUnembed) + begin * c, 1, c}, {d, n}, {dhidden, n}, true);
  const Parameter& weight = member.of(kUnembed);
  for (int64_t first = begin; first < known; first += kRows) {
    const int64_t rows = min(kRows, known - first);
    multiply(rows, sizes.row, sizes.batch, {d + (first - begin) * n, n, 1}, {work.hidden_rows, sizes.row},
             {gradient, sizes.row});
    for (int64_t r = 0; r < rows; ++r) adam.run(weight, (first + r) * c, c, gradient + r * sizes.row);
  }
  adam.run(weight, known * c, (end - known) * c, nullptr);
  for (int64_t v = 0; v < end - begin; ++v) {
    vf sum{};
    for (int64_t j = 0; j < n && v < known - begin; j += W) sum += load(d + v * n + j);
    gradient[v] = sum_of_lanes(sum);
  }
  adam.run(member.of(kUnembedBias), begin, end - begin, gradient);
}

float mean_loss(const Sizes& sizes, const Work& work) {
  double sum = 0;
  for (int64_t b = 0; b < sizes.batch; ++b) sum += work.loss[b];
  return float(sum / double(sizes.batch));
}

void train_member(const ExemplarSteps& p, const Sizes& sizes, Work& work, int64_t number, Team& team) {
  const Member member(p, sizes, number);
  const Tokens tokens{p, sizes, member, work};
  const bool first_layer = sizes.layers == 1 || !member.forced.first_layer;
  const auto one = [] { return 1; };
  const auto blocks = [&] { return sizes.blocks; };
  const auto slices = [&] { return sizes.slices; };
  const auto chunks = [&] { return sizes.chunks; };
  const auto vectors = [&] { return sizes.lanes / W; };
  const auto token_blocks = [&] { return tokens.blocks(); };
  float* gradient = work.gradient + team.rank() * work.gradient_size;
  const int64_t tokens_a_step = sizes.batch * p.pairs;
  team.each(one, [&](int64_t) {
    for (int64_t v = 0; v < sizes.labels; ++v) work.label_first[v] = -1;
    work.count = work.exemplars = 0;
  });
  const Adam none(p, 0, 0);
  const Update before{sizes, member, work, none, first_layer, gradient};
  team.each(blocks, [&](int64_t block) {
    before.transpose_embedding(block * kRows);
    for (int64_t which = 0; which < 3; ++which) before.copy_weight(which, block * kRows);
  });
  for (int64_t step = 0; step < p.steps; ++step) {
    const int64_t at = step * p.members + number, exemplars = at * (tokens_a_step + sizes.batch);
    const Sequences sequences{p.classes + exemplars, p.exemplars + exemplars, p.labels + at * tokens_a_step,
                              p.target + at * sizes.batch};
    const Adam adam(p, p.first_step + step, p.learning_rates[step]);
    const Update update{sizes, member, work, adam, first_layer, gradient};
    const auto weights = [&] { return update.units(); };
    const auto pass = [&](int64_t slice) {
      return SlicePass{sizes, member, work, {p.cos, p.sin}, p.norm_eps, slice};
    };
    team.each(one, [&](int64_t) { tokens.find(sequences); });
    team.each(token_blocks, [&](int64_t block) { tokens.forward(block, first_layer); });
    team.each(slices, [&](int64_t slice) { pass(slice).forward(sequences); });
    if (member.copies()) {
      team.each(chunks, [&](int64_t chunk) {
        const int64_t first = chunk * kLabelChunk, count = min(kLabelChunk, sizes.labels - first);
        adam.run(member.of(kUnembed), first * sizes.width, count * sizes.width, nullptr);
        adam.run(member.of(kUnembedBias), first, count, nullptr);
      });
    } else {
      team.each(chunks, [&](int64_t chunk) { chunk_forward(sizes, member, work, sequences, chunk); });
      team.each(vectors, [&](int64_t vector) { merge_chunks(sizes, work, vector * W); });
      team.each(chunks,
                [&](int64_t chunk) { chunk_backward(sizes, member, work, sequences, adam, chunk, gradient); });
    }
    team.each(slices, [&](int64_t slice) { pass(slice).backward(); });
    team.each(token_blocks, [&](int64_t block) { tokens.backward(block, first_layer); });
    team.each(weights, [&](int64_t unit) {
      if (unit == 0) p.losses[at] = mean_loss(sizes, work);
      update.run(unit);
    });
  }
}

}  // namespace

void exemplar_steps(const ExemplarSteps& p) {
  const Sizes sizes(p);
  const int64_t threads = max(p.num_threads, 1), alone = p.members - p.members % threads;
  const int64_t workers = alone ? threads : 1;
  Work* works;
  const Scratch table([&](Cutter& cutter) {
    works = reinterpret_cast<Work*>(cutter.take(workers * int64_t(sizeof(Work) / sizeof(float))));
  });
  int64_t floats = 0;
  const Scratch scratch([&](Cutter& cutter) {
    // what is beyond the width of the model is read, as factors of sums that are not, and must be finite
    if (cutter.base) std::memset(cutter.base, 0, size_t(floats) * sizeof(float));
    for (int64_t i = 0; i < workers; ++i) works[i].take(cutter, sizes, alone < p.members ? threads : 1);
    floats = cutter.used;
  });
  if (alone) {
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (int64_t member = 0; member < alone; ++member) {
      const NoDenormals guard;
      Phase own{};
      Team team(own, 0, 1);
      train_member(p, sizes, works[thread_number()], member, team);
    }
  }
  if (alone == p.members) return;
  Phase shared{};
  const int64_t most = sizes.blocks * (1 + 4 * sizes.layers) + sizes.chunks;  // about the units of the largest phase
  [[maybe_unused]] const int64_t team_size = min(threads, most);  // without OpenMP there is one thread
#pragma omp parallel num_threads(team_size)
  {
    const NoDenormals guard;
    Team team(shared, thread_number(), thread_count());
    for (int64_t member = alone; member < p.members; ++member) train_member(p, sizes, works[0], member, team);
  }
}

}  // namespace icl::ICL_ISA
