// Scores pictures with a model of padim-export, as Python's padim.Runtime does, and prints a JSON line for each:
//
//     padim-score MODEL.onnx PICTURE...
//
// Pictures are PNG, JPEG, BMP or PPM. The exit code is 2 after an error, which stderr names in one line.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <iostream>
#include <map>
#include <memory>
#include <numbers>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>
#include <onnxruntime_cxx_api.h>
#include <stb_image.h>

using Json = nlohmann::ordered_json;

struct Picture {
    int width, height;
    std::vector<uint8_t> rgb;  // [height, width, 3]
};

Picture read(const std::string& path) {
    int width, height, channels;
    auto* decoded = stbi_load(path.c_str(), &width, &height, &channels, 3);
    std::unique_ptr<uint8_t, void (*)(void*)> rgb(decoded, stbi_image_free);
    if (!rgb) throw std::runtime_error("can't read the picture " + path + ": " + stbi_failure_reason());
    return {width, height, {rgb.get(), rgb.get() + 3 * size_t(width) * height}};
}

// Resizing as Pillow 13 does: a filter as wide as the ratio of the sizes, in integers, and 8 bits after each axis.

constexpr int BITS = 22;  // of the fraction of a weight

struct Filter {
    double support;
    double (*weight)(double);  // at a distance in pixels, within the support
};
double sinc(double x) { return x == 0 ? 1 : std::sin(std::numbers::pi * x) / (std::numbers::pi * x); }

const std::map<std::string, Filter> FILTERS = {
    {"bilinear", {1, [](double x) { return 1 - x; }}},
    {"bicubic", {2, [](double x) { return x < 1 ? (1.5 * x - 2.5) * x * x + 1 : ((2.5 - 0.5 * x) * x - 4) * x + 2; }}},
    {"lanczos", {3, [](double x) { return sinc(x) * sinc(x / 3); }}},
};

struct Taps { int first; std::vector<int> weights; };  // the pixels that make up a resized one

Taps taps(int position, int from, int to, const Filter& filter) {
    const double ratio = double(from) / to, stretch = std::max(ratio, 1.0), centre = (position + 0.5) * ratio;
    const int first = std::max(0, int(centre - filter.support * stretch + 0.5));
    std::vector<double> weights(std::min(from, int(centre + filter.support * stretch + 0.5)) - first);
    for (size_t i = 0; i < weights.size(); ++i) {
        const double distance = std::abs(first + double(i) - centre + 0.5) / stretch;
        weights[i] = distance < filter.support ? filter.weight(distance) : 0;
    }
    const double sum = std::accumulate(weights.begin(), weights.end(), 0.0);
    Taps result{first, {}};
    for (double weight : weights) result.weights.push_back(int(std::round(weight / sum * (1 << BITS))));
    return result;
}

// A picture with another width, or with another height.
Picture stretched(const Picture& picture, bool down, int size, const Filter& filter) {
    Picture result{down ? picture.width : size, down ? size : picture.height, {}};
    std::vector<Taps> all;
    for (int i = 0; i < size; ++i) all.push_back(taps(i, down ? picture.height : picture.width, size, filter));
    const size_t row = 3 * size_t(picture.width), step = down ? row : 3;
    for (int y = 0; y < result.height; ++y)
        for (int x = 0; x < result.width; ++x)
            for (int channel = 0; channel < 3; ++channel) {
                const auto& [first, weights] = all[down ? y : x];
                const uint8_t* from = &picture.rgb[row * (down ? first : y) + 3 * (down ? x : first) + channel];
                int sum = 1 << (BITS - 1);
                for (size_t i = 0; i < weights.size(); ++i) sum += weights[i] * from[step * i];
                result.rgb.push_back(uint8_t(std::clamp(sum >> BITS, 0, 255)));
            }
    return result;
}

Picture resized(const Picture& picture, const Json& config) {
    const std::vector<int> sides = config.at("resize");  // the shorter one, or height and width
    int width = sides.back(), height = sides.front();
    if (sides.size() == 1 && picture.width <= picture.height)
        height = int(double(width) * picture.height / picture.width);
    else if (sides.size() == 1)
        width = int(double(height) * picture.width / picture.height);
    if (config.at("interpolation") == "nearest") throw std::runtime_error("interpolation nearest is for padim-predict");
    const Filter& filter = FILTERS.at(config.at("interpolation"));
    const bool down = picture.height > height && picture.height - height > 2 * (picture.width - width);  // first
    return stretched(stretched(picture, down, down ? height : width, filter), !down, down ? width : height, filter);
}

// The centre of a picture, [3, height, width].
std::vector<uint8_t> cropped(const Picture& picture, int height, int width) {
    size_t left = std::nearbyint((picture.width - width) * 0.5), top = std::nearbyint((picture.height - height) * 0.5);
    std::vector<uint8_t> planes;
    for (int channel = 0; channel < 3; ++channel)
        for (int y = 0; y < height; ++y)
            for (int x = 0; x < width; ++x)
                planes.push_back(picture.rgb[3 * ((top + y) * picture.width + left + x) + channel]);
    return planes;
}

// The score that a fresh normal picture reaches with at most the model's false-alarm rate; null without a calibration.
Json threshold(const Json& header) {
    if (header.at("calibration").is_null()) return nullptr;
    std::vector<float> scores = header["calibration"].at("scores");
    std::sort(scores.begin(), scores.end());
    double count = double(scores.size()) + 1, rate = header.at("about").at("false_alarm_rate");
    size_t allowed = size_t(std::floor(std::max(rate, 1 / count) * count + 1e-9));
    return std::nextafter(scores.at(scores.size() - allowed), INFINITY);
}

int main(int argc, char** argv) try {
    if (argc < 3) throw std::runtime_error("pass a model and pictures: padim-score MODEL.onnx PICTURE...");
    Ort::Env environment(ORT_LOGGING_LEVEL_FATAL);
    Ort::Session session(environment, std::filesystem::path(argv[1]).c_str(), Ort::SessionOptions());
    Ort::AllocatorWithDefaultOptions allocator;
    auto entry = session.GetModelMetadata().LookupCustomMetadataMapAllocated("padim", allocator);
    if (!entry) throw std::runtime_error(std::string(argv[1]) + " is not a model of padim-export");
    const Json header = Json::parse(entry.get()), config = header.at("config"), limit = threshold(header);
    if (header.at("version") != 1) throw std::runtime_error("an export of another version than 1");
    if (config.value("align", "none") != "none") throw std::runtime_error("aligned models are for padim-predict");
    if (config.value("decode", "full") != "full") throw std::runtime_error("JPEG is decoded in full here, not reduced");

    auto shape = session.GetInputTypeInfo(0).GetTensorTypeAndShapeInfo().GetShape();
    shape[0] = 1;
    const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
    const char *input = "images", *output = "scores";
    for (int i = 2; i < argc; ++i) {
        auto pixels = cropped(resized(read(argv[i]), config), int(shape[2]), int(shape[3]));
        auto tensor = Ort::Value::CreateTensor<uint8_t>(memory, pixels.data(), pixels.size(), shape.data(), 4);
        auto outputs = session.Run({}, &input, &tensor, 1, &output, 1);
        const float score = *outputs[0].GetTensorData<float>();
        const Json verdict = limit.is_null() ? Json() : score < limit ? "normal" : "anomalous";
        std::cout << Json{{"path", argv[i]}, {"verdict", verdict}, {"score", score}, {"threshold", limit}} << std::endl;
    }
} catch (const std::exception& error) {
    std::cerr << "padim-score: " << error.what() << std::endl;
    return 2;
}
