#include "convnextv2/classifier.hpp"

#include <algorithm>
#include <numeric>

#include "graph.hpp"

namespace convnextv2 {

struct Classifier::State {
  explicit State(const Folder& folder) : description(folder.description), graph(folder) {}
  Description description;
  Graph graph;
};

namespace {

constexpr std::size_t kChannels = 3;

std::vector<Prediction> best(std::span<const float> scores, const std::vector<std::string>& labels, std::size_t top_k) {
  std::vector<std::size_t> order(scores.size());
  std::iota(order.begin(), order.end(), 0);
  const auto count = static_cast<std::ptrdiff_t>(std::min(top_k, order.size()));
  std::partial_sort(order.begin(), order.begin() + count, order.end(), [&](std::size_t a, std::size_t b) {
    return scores[a] > scores[b] || (scores[a] == scores[b] && a < b);
  });
  std::vector<Prediction> predictions;
  for (std::ptrdiff_t i = 0; i < count; ++i) {
    const std::size_t index = order[static_cast<std::size_t>(i)];
    predictions.push_back({index, labels[index], scores[index]});
  }
  return predictions;
}

std::string name_of(const std::array<std::size_t, 4>& shape) {
  std::string name;
  for (const std::size_t length : shape) name += (name.empty() ? "(" : ", ") + std::to_string(length);
  return name + ")";
}

}  // namespace

void set_metallib(const std::filesystem::path& file) { Graph::set_metallib(file); }

Classifier::Classifier(const std::filesystem::path& folder) : state_(std::make_unique<State>(read_folder(folder))) {}
Classifier::~Classifier() = default;
Classifier::Classifier(Classifier&&) noexcept = default;
Classifier& Classifier::operator=(Classifier&&) noexcept = default;

const Description& Classifier::description() const noexcept { return state_->description; }

std::vector<Prediction> Classifier::classify(const Image& image, std::size_t top_k) const {
  const convnextv2_image view = image.view();
  return std::move(classify(std::span(&view, 1), top_k).front());
}

std::vector<std::vector<Prediction>> Classifier::classify(std::span<const convnextv2_image> images,
                                                          std::size_t top_k) const {
  const Description& description = this->description();
  const std::size_t pixels_of_one = description.width * description.height * kChannels;
  std::vector<std::vector<Prediction>> results;
  while (!images.empty()) {
    // The largest exported batch that these images fill; where they fill none, the smallest, with black ones behind.
    std::size_t batch = description.batches.front();
    for (const std::size_t larger : description.batches) batch = larger <= images.size() ? larger : batch;
    const auto group = images.first(std::min(batch, images.size()));
    images = images.subspan(group.size());
    std::vector<std::uint8_t> pixels;
    pixels.reserve(batch * pixels_of_one);
    for (const convnextv2_image& image : group) {
      const Image prepared = prepare(image, description.preparation);
      pixels.insert(pixels.end(), prepared.pixels.begin(), prepared.pixels.end());
    }
    pixels.resize(batch * pixels_of_one);
    const Output output = run(pixels, {batch, description.height, description.width, kChannels});
    const std::size_t classes = description.labels.size();
    for (std::size_t i = 0; i < group.size(); ++i) {
      results.push_back(best(std::span(output.probabilities).subspan(i * classes, classes), description.labels, top_k));
    }
  }
  return results;
}

Output Classifier::run(std::span<const std::uint8_t> pixels, const std::array<std::size_t, 4>& shape) const {
  const Description& description = this->description();
  const auto& batches = description.batches;
  const std::array<std::size_t, 4> expected{shape[0], description.height, description.width, kChannels};
  if (shape != expected || std::find(batches.begin(), batches.end(), shape[0]) == batches.end()) {
    std::string exported;
    for (const std::size_t batch : batches) {
      exported += (exported.empty() ? "" : " or ") + name_of({batch, expected[1], expected[2], kChannels});
    }
    throw Error(CONVNEXTV2_WRONG_SHAPE, "the graph was exported for pixels of shape " + exported + ", not " +
                                            name_of(shape) + ": export it with --batch for others");
  }
  if (pixels.size() != shape[0] * shape[1] * shape[2] * shape[3]) {
    throw Error(CONVNEXTV2_INVALID_ARGUMENT,
                "pixels of shape " + name_of(shape) + " are not " + std::to_string(pixels.size()) + " bytes");
  }
  return state_->graph.run(pixels, shape[0]);
}

}  // namespace convnextv2
