import CConvNeXtV2
import Foundation
@_exported import PixelImages  // part of what `import ConvNeXtV2` brings

/// What the library reports: a status to act on, and a sentence to show.
public struct ClassifierError: LocalizedError {
    public enum Status: UInt32, Sendable {
        case invalidArgument = 1, notFound, badDescription, wrongVersion, wrongDevice, damaged
        case wrongShape, streamTaken, badImage, noMemory, failed
    }

    public let status: Status
    public let message: String
    public var errorDescription: String? { message }

    static func check(_ status: convnextv2_status) throws {
        guard status != CONVNEXTV2_OK else { return }
        // The sentence belongs to this thread's last call: nothing may come in between.
        throw ClassifierError(
            status: Status(rawValue: UInt32(status.rawValue)) ?? .failed, message: String(cString: convnextv2_message()))
    }
}

public struct Prediction: Sendable, Identifiable {
    public let index: Int
    public let label: String
    /// The probability, 0 to 1.
    public let score: Float
    public var id: Int { index }
}

/// A model that `python -m mlx_convnextv2.export` wrote.
///
/// Safe from any thread: MLX computes for one call at a time, in a thread of the library's own. A call waits for its
/// answer, so make it from a background task.
public final class Classifier: @unchecked Sendable {
    private let handle: OpaquePointer

    /// Where the app keeps `mlx.metallib`, when not beside `libmlx.dylib`. Set before the first classifier is opened.
    public static func setMetallib(_ file: URL) throws {
        try ClassifierError.check(convnextv2_set_metallib(file.path))
    }

    /// Open an exported folder. Version, device and checksum are checked, and the graph runs once.
    public init(folder: URL) throws {
        var opened: OpaquePointer?
        try ClassifierError.check(convnextv2_open(folder.path, &opened))
        handle = opened!  // which a status of OK promises
    }

    deinit { convnextv2_close(handle) }

    public var labels: [String] {
        (0..<convnextv2_label_count(handle)).map { String(cString: convnextv2_label(handle, $0)) }
    }

    /// The labels of an image, the most probable first.
    public func classify(_ image: PixelImage, top count: Int = 5) throws -> [Prediction] {
        var found = [convnextv2_prediction](repeating: convnextv2_prediction(), count: max(count, 0))
        var foundCount = 0
        try image.pixels.withUnsafeBufferPointer { pixels in
            var view = convnextv2_image(
                pixels: pixels.baseAddress, width: image.width, height: image.height,
                row_bytes: image.width * image.bytesPerPixel, pixel_bytes: image.bytesPerPixel)
            try ClassifierError.check(convnextv2_classify(handle, &view, &found, found.count, &foundCount))
        }
        return found.prefix(foundCount).map {
            Prediction(index: $0.index, label: String(cString: $0.label), score: $0.score)
        }
    }
}
