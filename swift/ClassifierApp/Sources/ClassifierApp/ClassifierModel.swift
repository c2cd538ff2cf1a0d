import Foundation
import MLXConvNeXtV2
import MLXConvNeXtV2Hub
import Observation

/// What the window shows: the chosen model, the image, and its labels. Knows nothing of how it is drawn.
@MainActor
@Observable
final class ClassifierModel {
    enum Phase: Equatable {
        case idle
        /// The part of the model that is there, 0 to 1; nil while it is read.
        case loading(part: Double?)
        case working
        case failed(String)
    }

    /// A Hub id, or the path of a folder.
    private(set) var source = ConvNeXtV2Registry.standard.id
    private(set) var phase = Phase.idle
    /// What is shown: the image, decoded.
    private(set) var picture: PixelImage?
    private(set) var predictions: [Classification] = []
    private(set) var heatMap: HeatMap?
    var showsHeatMap = false {
        didSet { if showsHeatMap != oldValue { again() } }
    }

    private var image: ImageInput?
    private var isWatching = false
    private let downloader: any Downloader
    private var classifier: Task<ImageClassifier, any Error>?
    private var work: Task<Void, Never>?

    init(downloader: any Downloader = HubDownloader()) {
        self.downloader = downloader
    }

    /// Take another model, and name the same image again.
    func choose(_ source: String) {
        guard source != self.source else { return }
        self.source = source
        classifier?.cancel()
        classifier = nil
        again()
    }

    /// Name what an image shows; one that is still being worked on is given up.
    func classify(_ image: ImageInput) {
        isWatching = false
        self.image = image
        again()
    }

    /// Name what a camera sees, frame by frame, until the stream ends or something else is classified.
    func watch(_ frames: AsyncStream<ImageInput>) {
        work?.cancel()
        isWatching = true
        work = Task {
            do {
                for await frame in frames {
                    try await show(frame)
                }
            } catch {
                fail(error)
            }
            if !Task.isCancelled { isWatching = false }
        }
    }

    private func again() {
        guard let image, !isWatching else { return }  // a camera's next frame comes soon enough
        work?.cancel()
        predictions = []
        heatMap = nil
        work = Task {
            do {
                try await show(image)
            } catch {
                fail(error)
            }
        }
    }

    private func show(_ image: ImageInput) async throws {
        let decoded = try await Task.detached { try image.decoded() }.value
        try Task.checkCancellation()  // another image may have come meanwhile
        picture = decoded
        let classifier = try await opened()
        if !isWatching { phase = .working }
        let found = try await classifier.classify(.pixels(decoded))
        let map = showsHeatMap ? try await classifier.heatMap(.pixels(decoded)) : nil
        try Task.checkCancellation()
        predictions = found
        heatMap = map
        phase = .idle
    }

    private func opened() async throws -> ImageClassifier {
        if classifier == nil {
            phase = .loading(part: nil)
            classifier = Task { [source, downloader] in
                if source.hasPrefix("/") { return try await ImageClassifier.load(from: URL(fileURLWithPath: source)) }
                return try await ImageClassifier.load(id: source, from: downloader) { progress in
                    let part = progress.fractionCompleted
                    Task { @MainActor [weak self] in self?.told(part, of: source) }
                }
            }
        }
        guard let classifier else { throw CancellationError() }
        return try await classifier.value
    }

    private func told(_ part: Double, of source: String) {
        guard source == self.source, case .loading = phase else { return }
        phase = .loading(part: part < 1 ? part : nil)
    }

    private func fail(_ error: any Error) {
        guard !(error is CancellationError), !Task.isCancelled else { return }
        phase = .failed(error.localizedDescription)
        if predictions.isEmpty { classifier = nil }  // so that a model that could not be loaded is tried again
    }
}
