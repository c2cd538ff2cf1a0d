import CConvNeXtV2Image
import Foundation
@_exported import PixelImages  // part of what `import ExportedModel` brings

/// Why an exported folder or an image cannot be used.
public struct ExportedModelError: LocalizedError {
    public let message: String
    public var errorDescription: String? { message }
    public init(_ message: String) { self.message = message }
}

/// What model.json says, and the way from an image to the graph's input. Needs no MLX.
public struct ExportedModel: Decodable, Sendable {
    public let model: String
    public let mlxVersion: String
    public let device: String
    public let batches: [Int]
    public let labels: [String]
    public let graph: String
    public let sha256: String
    public let bytes: Int
    let format: String
    let formatVersion: Int
    let input: Tensor
    let preprocessing: Preprocessing

    public var height: Int { input.shape.lengths[0] }
    public var width: Int { input.shape.lengths[1] }

    struct Tensor: Decodable {
        let dtype: String
        let colour: String
        let shape: Shape
    }

    /// `["batch", n, ...]`: the lengths behind the batch.
    struct Shape: Decodable {
        let lengths: [Int]
        init(from decoder: Decoder) throws {
            var values = try decoder.unkeyedContainer()
            _ = try values.decode(String.self)
            var lengths: [Int] = []
            while !values.isAtEnd { lengths.append(try values.decode(Int.self)) }
            self.lengths = lengths
        }
    }

    struct Preprocessing: Decodable {
        struct Resize: Decodable {
            let filter: String
            let pillowVersion: String
            let shortSide: Int?
            let width: Int?
            let height: Int?
        }
        struct Crop: Decodable {
            let width: Int
            let height: Int
            let halves: String
        }
        let resize: Resize?
        let crop: Crop?
    }

    /// Read the model.json of a folder that `python -m mlx_convnextv2.export` wrote.
    public init(folder: URL) throws {
        let file = folder.appendingPathComponent("model.json")
        let decoder = JSONDecoder()
        decoder.keyDecodingStrategy = .convertFromSnakeCase
        do {
            self = try decoder.decode(ExportedModel.self, from: Data(contentsOf: file))
        } catch {
            throw ExportedModelError("\(file.path) cannot be read as an exported model: \(error.localizedDescription)")
        }
        guard format == "mlx_convnextv2 graph", formatVersion == 1, input.dtype == "uint8", input.colour == "RGB",
            input.shape.lengths.count == 3, input.shape.lengths[2] == 3, (1...8192).contains(width),
            (1...8192).contains(height), !batches.isEmpty, batches.allSatisfy((1...4096).contains),
            graph == URL(fileURLWithPath: graph).lastPathComponent
        else { throw ExportedModelError("\(file.path) describes a graph of another kind: export the model again") }
    }

    private static let filters = [
        "Pillow's lanczos": CONVNEXTV2_LANCZOS, "Pillow's bilinear": CONVNEXTV2_BILINEAR,
        "Pillow's bicubic": CONVNEXTV2_BICUBIC, "Pillow's box": CONVNEXTV2_BOX,
        "Pillow's hamming": CONVNEXTV2_HAMMING,
    ]

    private func preparation() throws -> convnextv2_preparation {
        var result = convnextv2_preparation()
        result.crop_width = width
        result.crop_height = height
        guard let resize = preprocessing.resize else { return result }
        guard let filter = Self.filters[resize.filter], let crop = preprocessing.crop,
            let pillow = resize.pillowVersion.split(separator: ".").first.flatMap({ Int32($0) }),
            crop.width == width, crop.height == height, ["down", "to even"].contains(crop.halves)
        else { throw ExportedModelError("\(model) is prepared in a way that is not known here: export it again") }
        result.resizes = 1
        result.filter = Int32(filter.rawValue)
        result.pillow = pillow
        result.short_side = resize.shortSide ?? 0
        result.width = resize.width ?? 0
        result.height = resize.height ?? 0
        result.halves_to_even = crop.halves == "to even" ? 1 : 0
        return result
    }

    /// Resized and cropped as Pillow does it: (height, width, 3).
    public func prepare(_ image: PixelImage) throws -> [UInt8] {
        var result = [UInt8](repeating: 0, count: height * width * 3)
        var how = try preparation()
        let status = image.pixels.withUnsafeBufferPointer { pixels in
            var view = convnextv2_image(
                pixels: pixels.baseAddress, width: image.width, height: image.height,
                row_bytes: image.width * image.bytesPerPixel, pixel_bytes: image.bytesPerPixel)
            return convnextv2_prepare(&view, &how, &result)
        }
        guard status == CONVNEXTV2_OK else { throw ExportedModelError(String(cString: convnextv2_message())) }
        return result
    }
}
