import Foundation

/// One image as the model takes it: (height, width, channels), row by row.
public struct PixelValues: Equatable, Sendable {
    public let height: Int
    public let width: Int
    public let channels: Int
    public let values: [Float]
}

/// Resize, crop, rescale and normalise, as `preprocessor_config.json` says and Pillow computes.
public struct ConvNeXtImageProcessor: Equatable, Sendable {
    /// How an image comes to `size`. The file's `crop_mode`; `bySize` where it has none.
    public enum CropMode: String, Sendable {
        /// Below 384 the short side becomes size / cropPct and the middle is kept; from 384 on, squeezed to a square.
        case bySize
        /// timm's, at any size: the short side becomes size / cropPct, and the middle is kept.
        case center
        /// timm's: both sides become size / cropPct, and the middle is kept.
        case squash
    }

    public let doResize: Bool
    public let size: Int
    public let cropPct: Double
    public let cropMode: CropMode
    /// Pillow's filters by Pillow's numbers: 0 nearest, 1 lanczos, 2 bilinear, 3 bicubic, 4 box, 5 hamming.
    public let resample: Int
    /// 1 / 255 as a rule; nil leaves values from 0 to 255.
    public let rescaleFactor: Double?
    /// Of each channel, or empty for none. One value means that images are brought to grey.
    public let imageMean: [Float]
    public let imageStd: [Float]
    /// Of the images that it makes: 3, or 1 for grey.
    public let channels: Int

    static let warpSize = 384
    static let mostValues = 30_000_000
    static let mostResizedPixels = 100_000_000
    private static let types = [
        "ConvNextImageProcessor", "ConvNextImageProcessorFast", "ConvNextImageProcessorPil", "ConvNextFeatureExtractor",
    ]
    private static let fields: Set = [
        "do_resize", "size", "crop_pct", "crop_mode", "resample", "do_rescale", "rescale_factor", "do_normalize",
        "image_mean", "image_std",
    ]
    /// Keys that do not touch a pixel.
    private static let inert: Set = [
        "image_processor_type", "feature_extractor_type", "processor_class", "_valid_processor_keys", "auto_map",
        "data_format", "input_data_format", "return_tensors", "device", "disable_grouping", "default_to_square",
        "do_convert_rgb", "crop_size", "pad_size",
    ]

    /// What the published checkpoints use.
    public static let imageNet = try! ConvNeXtImageProcessor(size: 224)  // values that are known to make sense

    /// - Throws: ``ConvNeXtV2Error/invalid(_:)`` that names the value that makes no sense.
    public init(
        doResize: Bool = true, size: Int, cropPct: Double = 224 / 256, cropMode: CropMode = .bySize, resample: Int = 3,
        rescaleFactor: Double? = 1 / 255, imageMean: [Float] = [0.485, 0.456, 0.406],
        imageStd: [Float] = [0.229, 0.224, 0.225], channels: Int = 3
    ) throws {
        func require(_ holds: Bool, _ sentence: String) throws {
            if !holds { throw ConvNeXtV2Error.invalid(sentence) }
        }
        try require(
            (1...8192).contains(size), "size must be {\"shortest_edge\": s} with a whole number s from 1 to 8192")
        try require((0.01...1).contains(cropPct), "crop_pct must be from 0.01 to 1, the whole of the resized image")
        try require((0...5).contains(resample), "resample must be one of Pillow's filters, 0 to 5")
        try require(rescaleFactor.map { $0 > 0 && $0.isFinite } ?? true, "rescale_factor must be a positive number")
        try require(imageMean.count == imageStd.count, "image_mean and image_std must have a value for each channel")
        try require(
            [1, 3].contains(channels), "image_mean must have one number for each channel, 3 for RGB or 1 for grey")
        try require(imageMean.isEmpty || imageMean.count == channels, "image_mean must have \(channels) values")
        try require(!imageStd.contains(0), "image_std must not contain 0, which pixels are divided by")
        try require(size * size * channels <= Self.mostValues, "size \(size) makes too many values: lower it")
        let side = Int(Double(size) / cropPct)
        try require(side * side <= Self.mostResizedPixels, "crop_pct \(cropPct) makes images too large: raise it")
        self.doResize = doResize
        self.size = size
        self.cropPct = cropPct
        self.cropMode = cropMode
        self.resample = resample
        self.rescaleFactor = rescaleFactor
        self.imageMean = imageMean
        self.imageStd = imageStd
        self.channels = channels
        let extremes = (0..<channels).flatMap { channel in [table(channel)[0], table(channel)[255]] }
        try require(extremes.allSatisfy(\.isFinite), "the pixel values must be numbers that a float32 can hold")
    }

    /// Read the `preprocessor_config.json` of a checkpoint folder, or the file itself.
    ///
    /// - Throws: ``ConvNeXtV2Error`` where it is missing, or says something that could change the pixels and is unknown.
    public init(contentsOf url: URL) throws {
        let file = url.pathExtension == "json" ? url : url.appendingPathComponent("preprocessor_config.json")
        do {
            try self.init(fields: JSONValue.object(from: file))
        } catch ConvNeXtV2Error.invalid(let sentence) {
            throw ConvNeXtV2Error.invalid("\(file.path): \(sentence)")
        }
    }

    init(fields: [String: JSONValue]) throws {
        for name in ["image_processor_type", "feature_extractor_type"] {
            if let type = try fields.text(name), !Self.types.contains(type) {
                throw ConvNeXtV2Error.invalid("\(name) is \(short(type)): only \(Self.types[0]) is read")
            }
        }
        for name in ["do_center_crop", "do_pad"] where ![nil, .bool(false)].contains(fields.given(name)) {
            throw ConvNeXtV2Error.invalid("\(name) is not part of ConvNeXt's preprocessing: set it to false")
        }
        let known = Self.fields.union(Self.inert).union(["do_center_crop", "do_pad"])
        let unknown = fields.keys.filter { !known.contains($0) && fields.given($0) != nil }.sorted()
        guard unknown.isEmpty else {
            throw ConvNeXtV2Error.invalid(
                "unknown preprocessing field \(some(unknown)): it could change the pixels; remove it if it does not")
        }
        let rescales = try Self.flag("do_rescale", fields)
        let normalises = try Self.flag("do_normalize", fields)
        let mean = try Self.channelValues("image_mean", fields)
        let std = try Self.channelValues("image_std", fields)
        let mode = try fields.text("crop_mode") ?? CropMode.bySize.rawValue
        guard let cropMode = CropMode(rawValue: mode) else {
            throw ConvNeXtV2Error.invalid("crop_mode must be \"center\", \"squash\" or absent, not \(short(mode))")
        }
        guard mean.count == std.count else {
            throw ConvNeXtV2Error.invalid("image_mean has \(mean.count) values and image_std \(std.count)")
        }
        try self.init(
            doResize: Self.flag("do_resize", fields), size: Self.shortestEdge(fields),
            cropPct: fields.decimal("crop_pct") ?? 224 / 256, cropMode: cropMode,
            resample: fields.whole("resample", in: 0...5) ?? 3,
            rescaleFactor: rescales ? fields.decimal("rescale_factor") ?? 1 / 255 : nil,
            imageMean: normalises ? mean : [], imageStd: normalises ? std : [], channels: mean.count)
    }

    /// An image -> its pixel values. Safe from any thread.
    ///
    /// - Throws: ``ConvNeXtV2Error/image(_:)`` where the image is too narrow to be resized, or too large without.
    public func preprocess(_ input: ImageInput) throws -> PixelValues {
        let image = try input.decoded()
        let prepared = try resized(channels == 1 ? image.inGrey() : image)
        guard prepared.width * prepared.height <= Self.mostValues / channels else {
            throw ConvNeXtV2Error.image(
                "\(prepared.width) x \(prepared.height) pixels are too many: scale the image down")
        }
        let tables = (0..<channels).map(table)
        let values = [Float](unsafeUninitializedCapacity: prepared.width * prepared.height * channels) {
            buffer, count in
            for pixel in 0..<prepared.width * prepared.height {
                for channel in 0..<channels {
                    buffer[pixel * channels + channel] =
                        tables[channel][Int(prepared.pixels[pixel * prepared.bytesPerPixel + channel])]
                }
            }
            count = buffer.count
        }
        return PixelValues(height: prepared.height, width: prepared.width, channels: channels, values: values)
    }

    /// The pixel value of each byte, with the roundings of the Python package.
    private func table(_ channel: Int) -> [Float] {
        (0...255).map { byte in
            let rescaled = rescaleFactor.map { Float(Double(byte) * $0) } ?? Float(byte)
            return imageMean.isEmpty ? rescaled : (rescaled - imageMean[channel]) / imageStd[channel]
        }
    }

    private static func flag(_ name: String, _ fields: [String: JSONValue]) throws -> Bool {
        guard let value = fields[name] else { return true }
        if value == .null { return false }  // as transformers takes it
        guard let truth = value.truth else { throw ConvNeXtV2Error.invalid("\(name) must be true or false") }
        return truth
    }

    private static func shortestEdge(_ fields: [String: JSONValue]) throws -> Int {
        guard let value = fields.given("size") else { return 384 }
        let side = value.fields?.count == 1 ? value.fields?["shortest_edge"] : value
        guard let whole = side?.whole else {
            throw ConvNeXtV2Error.invalid("size must be {\"shortest_edge\": s} with a whole number s from 1 to 8192")
        }
        return whole
    }

    private static func channelValues(_ name: String, _ fields: [String: JSONValue]) throws -> [Float] {
        guard let value = fields.given(name) else { return [0.5, 0.5, 0.5] }
        let numbers = value.list?.map(\.decimal) ?? [value.decimal, value.decimal, value.decimal]
        guard [1, 3].contains(numbers.count), numbers.allSatisfy({ $0.map { abs($0) < 3.4e38 } ?? false }) else {
            throw ConvNeXtV2Error.invalid("\(name) must be one number for each channel, 3 for RGB or 1 for grey")
        }
        return numbers.compactMap { $0.map { Float($0) } }
    }
}
