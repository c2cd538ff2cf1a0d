import ConvNeXtV2Core
import Foundation
import MLX

/// A checkpoint ready to classify. Safe from any task: images are decoded and prepared where the call comes from, and MLX
/// computes for one call at a time.
///
/// ```swift
/// let classifier = try await ImageClassifier.load(from: folder)
/// for label in try await classifier.classify(.url(photo)) {
///     print(label.score, label.label)
/// }
/// ```
public actor ImageClassifier {
    public nonisolated let configuration: ConvNeXtV2Configuration
    public nonisolated let processor: ConvNeXtImageProcessor
    /// The label of each class, in the order of the logits.
    public nonisolated let labels: [String]
    private let predictor: Predictor

    private init(_ model: sending ConvNeXtV2ForImageClassification, _ processor: ConvNeXtImageProcessor) {
        configuration = model.configuration
        labels = ClassLabels.named(model.configuration.labels)
        self.processor = processor
        predictor = Predictor(model)
    }

    /// Load a checkpoint folder, with its own image processor.
    ///
    /// - Parameters:
    ///   - folder: written by `python -m mlx_convnextv2.convert`, or Hugging Face's own.
    ///   - dtype: float32, float16 or bfloat16 to compute in; nil keeps the checkpoint's.
    /// - Throws: ``ConvNeXtV2Error``: a file is missing or corrupt, or the weights do not fit.
    public static func load(from folder: URL, dtype: DType? = nil) async throws -> ImageClassifier {
        let processor = try ConvNeXtImageProcessor(contentsOf: folder)
        let model = try ConvNeXtV2ForImageClassification.load(from: folder, dtype: dtype)
        guard processor.channels == model.configuration.numChannels else {
            throw ConvNeXtV2Error.invalid(
                "\(folder.path): the model takes \(model.configuration.numChannels) channels, and its image processor "
                    + "makes \(processor.channels)")
        }
        return ImageClassifier(model, processor)
    }

    /// Download a checkpoint, or find it in the cache, and load it.
    ///
    /// - Parameters:
    ///   - id: of a repository, such as "facebook/convnextv2-tiny-1k-224"; ``ConvNeXtV2Registry`` has the published ones.
    ///   - revision: a branch, tag or commit; nil means the main one.
    ///   - downloader: `HubDownloader()` of `MLXConvNeXtV2Hub`, or one of your own.
    /// - Throws: ``ConvNeXtV2Error``, or what the downloader throws.
    public static func load(
        id: String, revision: String? = nil, from downloader: any Downloader, dtype: DType? = nil,
        progressHandler: @Sendable @escaping (Progress) -> Void = { _ in }
    ) async throws -> ImageClassifier {
        let folder = try await downloader.download(
            id: id, revision: revision, matching: CheckpointFolder.patterns, useLatest: false,
            progressHandler: progressHandler)
        return try await load(from: folder, dtype: dtype)
    }

    /// The labels of an image, the most probable first.
    ///
    /// - Parameter top: how many labels at most.
    /// - Throws: ``ConvNeXtV2Error``: the image cannot be read, or its scores are not finite.
    public nonisolated func classify(_ image: ImageInput, top: Int = 5) async throws -> [Classification] {
        try await classify(prepared: prepare(image), top: top)
    }

    /// The labels of images as they come, one answer for each, in order: an image that fails does not end the sequence.
    ///
    /// The next image is asked for when its answer is. For a camera let the stream drop the frames in between:
    /// `AsyncStream(ImageInput.self, bufferingPolicy: .bufferingNewest(1))`.
    public nonisolated func classify<Images: AsyncSequence>(
        _ images: Images, top: Int = 5
    ) -> ImageClassifications<Images> where Images.Element == ImageInput {
        ImageClassifications(images: images, classifier: self, top: top)
    }

    /// What the classifier sees of an image: the pooled features, which are near each other where images are alike.
    public nonisolated func embed(_ image: ImageInput) async throws -> [Float] {
        try await embed(prepared: prepare(image))
    }

    /// Where in an image a label was seen.
    ///
    /// - Parameter index: of the class; nil means the most probable.
    /// - Returns: a part of the label's logit for each position of the last stage.
    public nonisolated func heatMap(_ image: ImageInput, of index: Int? = nil) async throws -> HeatMap {
        if let index, !labels.indices.contains(index) {
            throw ConvNeXtV2Error.invalid("there is no class \(index): they are 0 to \(labels.count - 1)")
        }
        let decoded = try image.decoded()
        return try await heatMap(
            prepared: prepare(.pixels(decoded)), of: index, region: processor.region(of: decoded))
    }

    /// How the blocks are computed: by our Metal kernels, or by MLX's operations, and then why.
    public var path: String { predictor.path }

    private nonisolated func prepare(_ image: ImageInput) throws -> PixelValues {
        let values = try processor.preprocess(image)
        let least = configuration.minImageSize
        guard values.height >= least.height, values.width >= least.width else {
            throw ConvNeXtV2Error.image(
                "an image of \(values.height) x \(values.width) pixels is too small: the model needs "
                    + "\(least.height) x \(least.width)")
        }
        return values
    }

    // Each of these begins and ends its work on MLX without a pause: MLX's streams belong to threads, and an actor may go
    // on in another thread after every await.

    private func classify(prepared image: PixelValues, top: Int) throws -> [Classification] {
        try Classification.best(top, logits: predictor.logits(image.array), labels: labels)
    }

    private func embed(prepared image: PixelValues) throws -> [Float] {
        try predictor.features(image.array)
    }

    private func heatMap(prepared image: PixelValues, of index: Int?, region: ImageRegion) throws -> HeatMap {
        try predictor.heatMap(image.array, of: index, region: region)
    }
}

extension PixelValues {
    /// (1, height, width, channels) float32.
    var array: MLXArray { MLXArray(values, [1, height, width, channels]) }
}

/// The labels of a sequence of images, each when it is asked for: see ``ImageClassifier/classify(_:top:)-(Images,_)``.
public struct ImageClassifications<Images: AsyncSequence>: AsyncSequence where Images.Element == ImageInput {
    public typealias Element = Result<[Classification], any Error>

    let images: Images
    let classifier: ImageClassifier
    let top: Int

    public struct AsyncIterator: AsyncIteratorProtocol {
        var images: Images.AsyncIterator
        let classifier: ImageClassifier
        let top: Int

        public mutating func next() async throws -> Result<[Classification], any Error>? {
            guard let image = try await images.next() else { return nil }
            do {
                return .success(try await classifier.classify(image, top: top))
            } catch {
                return .failure(error)
            }
        }
    }

    public func makeAsyncIterator() -> AsyncIterator {
        AsyncIterator(images: images.makeAsyncIterator(), classifier: classifier, top: top)
    }
}
